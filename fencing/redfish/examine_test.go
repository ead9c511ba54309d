package redfish_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/redfish"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
)

// An account that may read and not switch is found without switching anything; its
// readings go on. What a board does not show speaks against no account.
func TestExamine(t *testing.T) {
	as := func(r redfishtest.Role) func(*redfishtest.Config) {
		return func(c *redfishtest.Config) { c.Accounts[0].Role = r }
	}
	for _, tt := range []struct {
		name  string
		board func(*redfishtest.Config)
		basic bool
		weak  bool
	}{
		{name: "operator"},
		{name: "administrator", board: as(redfishtest.Administrator)},
		{name: "read only", board: as(redfishtest.ReadOnly), weak: true},
		{name: "read only, basic", board: as(redfishtest.ReadOnly), basic: true, weak: true},
		{name: "a role of one's own", board: as(redfishtest.Custom), weak: true},
		{name: "a role with a privilege of the maker's", board: func(c *redfishtest.Config) { as(redfishtest.Custom)(c); c.OEMRole = true }},
		{name: "read only, and the board shows no accounts", board: func(c *redfishtest.Config) { as(redfishtest.ReadOnly)(c); c.HideAccounts = true }},
		{name: "read only, among others", weak: true, board: func(c *redfishtest.Config) {
			as(redfishtest.ReadOnly)(c)
			c.Accounts = []redfishtest.Account{{Name: "root", Password: "x", Role: redfishtest.Administrator}, c.Accounts[0]}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := board(t, tt.board)
			d := driver(t, b, func(c *redfish.Config) {
				if tt.basic {
					c.Login = redfish.LoginBasic
				}
			})
			r := fencing.TestDevice(t.Context(), fencing.Device{Host: "h", Key: "k", Driver: fencing.NewGate().Read("k", d)}, true)
			if r.Err != nil || r.Reading.State != haven.PowerOn {
				t.Errorf("reading %v, %v", r.Reading, r.Err)
			}
			if got := fencing.FailureOf(r.Weak) == fencing.FailurePrivilege; got != tt.weak || r.Weak != nil && strings.Contains(r.Weak.Error(), secret) {
				t.Errorf("weak: %v", r.Weak)
			}
			if len(b.Commands()) > 0 || slices.ContainsFunc(b.Requests(), func(q string) bool {
				return strings.HasPrefix(q, "PATCH") || strings.HasPrefix(q, "POST") && !strings.HasSuffix(q, "/Sessions")
			}) {
				t.Errorf("the board was asked %q", b.Requests())
			}
		})
	}
}
