package ipmitest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Sim is a board that is not ours: OpenIPMI's ipmi_sim, whose chassis is a file.
// It knows cipher suite 3 and not 17, and lets every account have every privilege.
type Sim struct {
	// Addr is where it answers, a moment after the start.
	Addr string

	state string
	cmd   *exec.Cmd
}

// SimProgram is the program, of Debian's package openipmi.
const SimProgram = "ipmi_sim"

// StartSim runs one in an empty directory, with the accounts, the GUID and the key
// of cfg, in plain text without blanks.
func StartSim(dir string, cfg Config) (*Sim, error) {
	probe, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a port: %w", err)
	}
	port := probe.LocalAddr().(*net.UDPAddr).Port
	_ = probe.Close()
	s := &Sim{Addr: fmt.Sprintf("127.0.0.1:%d", port), state: filepath.Join(dir, "power")}
	script, power := filepath.Join(dir, "chassis"), "1"
	if cfg.Off {
		power = "0"
	}
	conf := []string{
		`name "lab"`, "set_working_mc 0x20", "startlan 1", fmt.Sprintf("addr 127.0.0.1 %d", port), "priv_limit admin",
		"allowed_auths_callback none md2 md5 straight", "allowed_auths_user none md2 md5 straight",
		"allowed_auths_operator none md2 md5 straight", "allowed_auths_admin none md2 md5 straight",
		"guid " + hex.EncodeToString(cfg.GUID[:]),
	}
	if len(cfg.KG) > 0 {
		conf = append(conf, fmt.Sprintf("bmc_key %q", cfg.KG))
	}
	conf = append(conf, "endlan", fmt.Sprintf("chassis_control %q", script), `user 1 false "" "" user 10 none md2 md5 straight`)
	for i, a := range cfg.Accounts {
		right := map[Privilege]string{User: "user", Operator: "operator", Admin: "admin"}[a.Privilege]
		conf = append(conf, fmt.Sprintf(`user %d true "%s" "%s" %s 10 md5`, 2*i+2, a.Name, a.Password, right))
	}
	for _, f := range []struct {
		path, text string
		mode       os.FileMode
	}{
		{s.state, power, 0o644},
		{script, "#!/bin/sh\ncase \"$1 $2\" in\n\"get power\") echo power:$(cat " + s.state + ");;\n\"set power\") printf %s \"$3\" > " + s.state + ";;\n\"get boot\") echo boot:default;;\nesac\n", 0o755},
		{filepath.Join(dir, "lan.conf"), strings.Join(conf, "\n") + "\n", 0o600},
		{filepath.Join(dir, "sim.emu"), "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nsel_enable 0x20 1000 0x0a\nmc_enable 0x20\n", 0o644},
	} {
		if err := os.WriteFile(f.path, []byte(f.text), f.mode); err != nil {
			return nil, fmt.Errorf("set up %s: %w", SimProgram, err)
		}
	}
	s.cmd = exec.CommandContext(context.Background(), SimProgram, "-c", filepath.Join(dir, "lan.conf"), "-f", filepath.Join(dir, "sim.emu"), "-s", filepath.Join(dir, "state"), "-n")
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", SimProgram, err)
	}
	return s, nil
}

// On tells the true state of its chassis.
func (s *Sim) On() bool {
	data, err := os.ReadFile(s.state)
	return err == nil && string(data) == "1"
}

// Close ends it.
func (s *Sim) Close() error {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // It was killed, and says so.
	return nil
}
