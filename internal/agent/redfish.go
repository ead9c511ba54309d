package agent

import (
	"crypto/x509"
	"net/netip"
	"time"

	"github.com/haven-ha/haven/fencing/redfish"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
)

// redfishDevice is a board that speaks Redfish. The authorities of its certificate
// are read for each session, so that a new one needs no restart.
func redfishDevice(name string, d config.Device, password func() (string, error)) (FenceDevice, error) {
	cfg := redfish.Config{
		Net: netx.Real{}, Address: netip.AddrPortFrom(d.Address, uint16(d.Port)).String(), Username: d.Username, Password: password,
		System: d.Redfish.System, Name: d.Redfish.CertificateName, Pin: d.Redfish.Pin,
		Login: redfish.Login(d.Redfish.Session), Timeout: d.Timeout,
	}
	if file := d.Redfish.CAFile; file != "" {
		cfg.Roots = func() (*x509.CertPool, error) { return pki.Roots(file) }
	}
	driver, err := redfish.New(cfg)
	if err != nil {
		return FenceDevice{}, err
	}
	return FenceDevice{Name: name, Key: driver.Target(), Address: driver.Target(), Driver: driver, Session: d.Timeout + redfish.Goodbye + time.Second}, nil
}
