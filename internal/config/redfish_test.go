package config

import (
	"strings"
	"testing"
	"time"
)

// TestRedfishDevice: port and timeout are those of the driver unless they are
// written anywhere, and each host has its board's pin.
func TestRedfishDevice(t *testing.T) {
	pin := strings.Repeat("0F:", 31) + "0F"
	tests := []struct {
		name, common, h1, h2 string
		port                 int // of h1; h2 has 8443
		timeout              time.Duration
		system               string
	}{
		{"defaults", "driver: redfish", "redfish: {pin: PIN}", "address: 10.1.0.2, port: 8443, redfish: {pin: PIN}", 443, 15 * time.Second, ""},
		{"port and timeout of the cluster", "driver: redfish, port: 623, timeout: 2s", "redfish: {pin: PIN}", "address: 10.1.0.2, port: 8443, redfish: {pin: PIN}", 623, 2 * time.Second, ""},
		{"timeout of the host, driver of the host", "redfish: {ca_file: /k/bmc-ca}", "driver: redfish, timeout: 20s", "address: 10.1.0.2, driver: redfish, port: 8443", 443, 20 * time.Second, ""},
		{"two systems behind one address", "driver: redfish, port: 8443, redfish: {pin: PIN}", "redfish: {system: /redfish/v1/Systems/a}", "address: 10.1.0.1, redfish: {system: /redfish/v1/Systems/b}", 8443, 15 * time.Second, "/redfish/v1/Systems/a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.NewReplacer(
				"devices: {bmc: {driver: ipmi, username: haven, password_file: /k/bmc}}", "devices: {bmc: {username: haven, password_file: /k/bmc, "+tt.common+"}}",
				"devices: {bmc: {address: 10.1.0.1}}", "devices: {bmc: {address: 10.1.0.1, "+tt.h1+"}}",
				"devices: {bmc: {address: 10.1.0.2}}", "devices: {bmc: {"+tt.h2+"}}",
				"devices: {bmc: {address: 10.1.0.3}}", "devices: {bmc: {address: 10.1.0.3, driver: redfish, redfish: {pin: PIN}}}",
			).Replace(small)
			c := load(t, strings.ReplaceAll(text, "PIN", pin))
			h1, _ := c.Host("h1")
			h2, _ := c.Host("h2")
			a, b := h1.Ladder()[0][0], h2.Ladder()[0][0]
			if a.Port != tt.port || b.Port != 8443 || a.Timeout != tt.timeout || a.Redfish.System != tt.system || a.Redfish.Session != "session" {
				t.Errorf("h1 %+v\nh2 %+v", a, b)
			}
			if a.Redfish.CAFile == "" && a.Redfish.Pin != strings.Repeat("0f", 32) {
				t.Errorf("pin %q", a.Redfish.Pin)
			}
		})
	}
}
