// Package gobmc is a BMC over real RMCP+ in Go. Unlike ipmi_sim it knows cipher
// suite 17, and like small BMCs it has room for four sessions only.
package gobmc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Privilege is what a user may do.
type Privilege int

// The privileges of IPMI that the lab uses.
const (
	User     Privilege = iota // read
	Operator                  // read and power
	Admin                     // everything
)

// Account is one user of the BMC.
type Account struct {
	Name, Password string // at most 16 and 20 octets
	Privilege      Privilege
}

// Config says what the BMC looks like from the network.
type Config struct {
	GUID     [16]byte
	Accounts []Account
}

// Chassis is the machine under the BMC. Its methods may block: the BMC answers
// other sessions meanwhile.
type Chassis interface {
	// Power reads whether the machine is on.
	Power(ctx context.Context) (on bool, err error)
	// SetPower switches it on or off; already done is no error.
	SetPower(ctx context.Context, on bool) error
	// Shutdown presses the power button, as soft shutdown does.
	Shutdown(ctx context.Context) error
	// Identify lights the LED for so many seconds; 255 is for ever.
	Identify(ctx context.Context, seconds uint8) error
}

// Serve answers on conn until ctx ends, and closes conn. It speaks cipher suites
// 3 and 17.
func Serve(ctx context.Context, conn *net.UDPConn, c Config, machine Chassis) error {
	b := bmc.New(bmc.DeviceInfo{
		DeviceID: 0x20, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20,
	}, c.GUID, hardware{machine}, bmc.WithClock(clock.Real))
	for i, a := range c.Accounts {
		if err := addAccount(b, i, a); err != nil {
			return errors.Join(fmt.Errorf("add BMC user %s: %w", a.Name, err), conn.Close())
		}
	}
	commands := handlers.NewRegistry()
	handlers.RegisterAllHandlers(commands)
	commands.RegisterFunc(types.CommandGetSystemGUID, systemGUID)
	s := server.NewServer(b, udp.Wrap(conn, udp.WithReadTimeout(time.Second)),
		server.WithHandlerRegistry(commands),
		server.WithCipherSuites([]types.CipherSuiteID{types.CipherSuiteID3, types.CipherSuiteID17}))
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve IPMI: %w", err)
	}
	return nil
}

// systemGUID answers Get System GUID, which the library lacks.
func systemGUID(_ context.Context, h *handlers.HandlerContext, _ []byte) ([]byte, types.CompletionCode, error) {
	guid := h.BMC.GUID
	return guid[:], types.CodeOK, nil
}

func addAccount(b *bmc.BMC, i int, a Account) error {
	if i > math.MaxUint8-2 {
		return errors.New("too many users")
	}
	u, err := b.Users.Add(uint8(i+2), a.Name) // user 1 is the anonymous one
	if err != nil {
		return err
	}
	level := map[Privilege]bmc.PrivilegeLevel{
		User: bmc.PrivilegeLevelUser, Operator: bmc.PrivilegeLevelOperator, Admin: bmc.PrivilegeLevelAdministrator,
	}[a.Privilege]
	u.SetPassword([]byte(a.Password))
	u.Enabled = true
	u.ChannelAccess[1] = bmc.UserChannelAccess{MaxPrivilege: level, Enabled: true}
	return nil
}

// hardware is a machine that has a chassis and nothing else.
type hardware struct{ machine Chassis }

func (h hardware) Chassis() hal.ChassisHAL { return chassis(h) }
func (hardware) Sensors() hal.SensorHAL    { return nil }
func (hardware) Storage() hal.StorageHAL   { return nil }
func (hardware) Network() hal.NetworkHAL   { return nil }
func (hardware) GPIO() hal.GPIOHAL         { return nil }
func (hardware) I2C() hal.I2CHAL           { return nil }
func (hardware) Console() hal.ConsoleHAL   { return nil }
func (hardware) Close() error              { return nil }

type chassis struct{ machine Chassis }

func (c chassis) PowerState(ctx context.Context) (bool, error) { return c.machine.Power(ctx) }
func (c chassis) SetPower(ctx context.Context, on bool) error  { return c.machine.SetPower(ctx, on) }
func (c chassis) WarmReset(ctx context.Context) error          { return c.machine.Shutdown(ctx) }
func (c chassis) Identify(ctx context.Context, seconds uint8) error {
	return c.machine.Identify(ctx, seconds)
}
func (c chassis) ColdReset(ctx context.Context) error { return c.PowerCycle(ctx) }

func (c chassis) PowerCycle(ctx context.Context) error {
	if err := c.machine.SetPower(ctx, false); err != nil {
		return err
	}
	return c.machine.SetPower(ctx, true)
}

func (chassis) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }

func (chassis) SetBootFlags(context.Context, *types.BootOptionParam_BootFlags) error {
	return hal.ErrNotSupported
}

func (chassis) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	return nil, hal.ErrNotSupported
}

func (chassis) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

func (chassis) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}
