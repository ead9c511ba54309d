package lab

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/haven-ha/haven/test/lab/gobmc"
)

const bmcPort = "623"

// simScript is how ipmi_sim reaches the chassis. Reading the power is by far the
// most frequent command and stays in the shell; ipmi_sim does one at a time.
const simScript = `#!/bin/sh
[ -s %[1]s ] && sleep "$(cat %[1]s)"
case "$1 $2" in
"get power")
	while read -r key value; do
		if [ "$key" = populated ]; then echo "power:$value"; fi
	done < %[2]s/cgroup.events ;;
"get "*) echo "$2:default" ;;
*) exec %[3]s %[4]s %[5]s %[6]s "$@" >> %[7]s 2>&1 ;;
esac
`

const simEmulator = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

const simLAN = `name "%[1]s"
set_working_mc 0x20
  startlan 1
    addr %[2]s %[3]s
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid %[4]s
  endlan
  chassis_control "%[5]s"
  user 1 false "" "" user 10 none md2 md5 straight
  user 2 true "%[6]s" "%[7]s" admin 10 md5
  user 3 true "%[8]s" "%[9]s" operator 10 md5
`

func (s *spec) slowFile(host string) string { return filepath.Join(s.bmcDir(host), "slow") }
func (s *spec) moodFile(host string) string { return filepath.Join(s.bmcDir(host), "mood") }

// BMCMood is what a BMC does about power commands.
type BMCMood string

// The moods.
const (
	BMCObeys   BMCMood = "obeys"
	BMCIgnores BMCMood = "ignores" // says that they are done
	BMCRefuses BMCMood = "refuses"
)

// willing says whether the BMC does what it was told; if not, the error is its
// answer.
func (c chassis) willing() (bool, error) {
	mood, err := os.ReadFile(c.spec.moodFile(c.host))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	case BMCMood(mood) == BMCRefuses:
		return false, errors.New("refused")
	}
	return BMCMood(mood) == BMCObeys, nil
}

// prepareBMC writes the configuration of a host's BMC.
func (s *spec) prepareBMC(h HostInfo) error {
	dir := s.bmcDir(h.Name)
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		return err
	}
	script := filepath.Join(dir, "chassis")
	guid := strings.ReplaceAll(h.UUID, "-", "")
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "sim.emu"), []byte(simEmulator), 0o600),
		os.WriteFile(filepath.Join(dir, "lan.conf"), fmt.Appendf(nil, simLAN, h.Name, h.BMCAddress, bmcPort, guid,
			script, h.BMCAdmin, h.BMCAdminSecret, h.BMCUser, h.BMCPassword), 0o600),
		os.WriteFile(script, fmt.Appendf(nil, simScript, s.slowFile(h.Name), s.hostCgroup(h.Name),
			s.binary(), childChassis, s.Dir, h.Name, filepath.Join(dir, "chassis.log")), 0o700),
	)
}

// startBMC starts a host's BMC and waits until it answers.
func (s *spec) startBMC(ctx context.Context, h HostInfo) (*daemon, error) {
	args := []string{s.binary(), childBMC, s.Dir, h.Name}
	if s.BMC == BMCSim {
		sim, err := toolPath("ipmi_sim")
		if err != nil {
			return nil, err
		}
		dir := s.bmcDir(h.Name)
		args = []string{sim, "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", filepath.Join(dir, "state"), "-n"}
	}
	log := s.file("log", "bmc-"+h.Name+".log")
	d, err := startDaemon(log, s.netnsPath(bmcNS(h.Name)), s.bmcCgroup(h.Name), args...)
	if err != nil {
		return nil, fmt.Errorf("start BMC of %s: %w", h.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		if !d.alive() {
			return false, errors.New(lastLines(log))
		}
		return s.pingBMC(ctx, h), nil
	})
	if err != nil {
		return d, fmt.Errorf("wait for BMC of %s: %w", h.Name, err)
	}
	return d, nil
}

// bmcOn plugs a host's BMC in and starts it, unless it runs.
func (s *spec) bmcOn(ctx context.Context, h HostInfo) (*daemon, error) {
	if err := setLinks(s.netnsPath(bmcNS(h.Name)), true, oob); err != nil {
		return nil, err
	}
	if err := s.waitLeg(ctx, bmcNS(h.Name), oob); err != nil {
		return nil, err
	}
	if on, err := s.bmcCgroup(h.Name).populated(); on || err != nil {
		return nil, err
	}
	return s.startBMC(ctx, h)
}

// bmcOff ends a host's BMC and, if it is to be unplugged, its link.
func (s *spec) bmcOff(ctx context.Context, host string, unplug bool) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	if unplug {
		if err := setLinks(s.netnsPath(bmcNS(host)), false, oob); err != nil {
			return err
		}
	}
	group := s.bmcCgroup(host)
	if err := group.kill(); err != nil {
		return err
	}
	return errors.Join(group.waitEmpty(ctx), group.thaw())
}

// pingBMC sends an RMCP presence ping and says whether a pong came back.
func (s *spec) pingBMC(ctx context.Context, h HostInfo) bool {
	conn, err := dialIn(ctx, s.netnsPath(bmcNS(h.Name)), "udp", net.JoinHostPort(h.BMCAddress, bmcPort))
	if err != nil {
		return false
	}
	defer conn.Close() //nolint:errcheck // a datagram socket
	_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	// RMCP header, then ASF's enterprise number, type 0x80 "presence ping", tag 1.
	if _, err := conn.Write([]byte{6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x80, 1, 0, 0}); err != nil {
		return false
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	return err == nil && n > 8 && answer[8] == 0x40
}

// runBMC is the child that is a host's BMC in Go.
func runBMC(dir, host string) error {
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	h, err := s.host(host)
	if err != nil {
		return err
	}
	guid, err := hex.DecodeString(strings.ReplaceAll(h.UUID, "-", ""))
	if err != nil {
		return fmt.Errorf("parse host UUID: %w", err)
	}
	config := gobmc.Config{GUID: [16]byte(guid), Accounts: []gobmc.Account{
		{Name: h.BMCAdmin, Password: h.BMCAdminSecret, Privilege: gobmc.Admin},
		{Name: h.BMCUser, Password: h.BMCPassword, Privilege: gobmc.Operator},
	}}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	address, err := net.ResolveUDPAddr("udp", net.JoinHostPort(h.BMCAddress, bmcPort))
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", address)
	if err != nil {
		return fmt.Errorf("listen for IPMI: %w", err)
	}
	return gobmc.Serve(ctx, conn, config, bmcChassis{chassis{spec: s, host: host}})
}

// bmcChassis lets the BMC in Go at the host's chassis.
type bmcChassis struct{ chassis chassis }

// delay is the slow BMC's.
func (b bmcChassis) delay(ctx context.Context) {
	text, err := os.ReadFile(b.chassis.spec.slowFile(b.chassis.host))
	if err != nil {
		return
	}
	if seconds, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64); err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(seconds * float64(time.Second))):
		}
	}
}

func (b bmcChassis) Power(ctx context.Context) (bool, error) {
	b.delay(ctx)
	return b.chassis.power()
}

func (b bmcChassis) SetPower(ctx context.Context, on bool) error {
	b.delay(ctx)
	d, err := b.chassis.obey(ctx, map[bool]string{true: "on", false: "off"}[on])
	if d != nil {
		go d.wait() // ends with the host, at the latest with the BMC
	}
	return err
}

func (b bmcChassis) Shutdown(ctx context.Context) error {
	b.delay(ctx)
	return errors.Join(b.chassis.note("shutdown"), b.chassis.shutdown())
}

func (b bmcChassis) Identify(ctx context.Context, _ uint8) error {
	b.delay(ctx)
	return b.chassis.note("identify")
}
