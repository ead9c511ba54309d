package minicluster

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/tlsmux"
)

// writeSecrets writes the secrets to where the configuration says they are.
func (c *Cluster) writeSecrets() error {
	s := c.opts.Secrets
	for name, text := range map[string]string{
		"bmc.password": s.BMC, "bmc.kg": s.KG, "gossip.key": base64.StdEncoding.EncodeToString(s.Gossip),
	} {
		if err := os.WriteFile(filepath.Join(c.opts.Dir, name), []byte(text+"\n"), 0o600); err != nil {
			return fmt.Errorf("write secret: %w", err)
		}
	}
	return nil
}

func (c *Cluster) boardSecrets() (password string, kg []byte) {
	if s := c.opts.Secrets; s != nil {
		return s.BMC, []byte(s.KG)
	}
	return bmcPassword, nil
}

// PrivateKey returns the key of a host's certificate, PEM.
func (h *Host) PrivateKey() []byte { return h.pair.Key }

// Ledger returns the ledger of the machine's agent; nil while it does not run.
func (h *Host) Ledger() *ledger.Store {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil {
		return nil
	}
	return h.agent.agent.Ledger()
}

// AsHost makes a transport to all agents in the name of a host, as agents have.
func (c *Cluster) AsHost(id haven.HostID) *http.Transport {
	return tlsmux.NewTransport(netx.Real{}, c.Host(id).creds, func(id haven.HostID) (string, bool) {
		h := c.Host(id)
		if h == nil {
			return "", false
		}
		return netip.AddrPortFrom(h.Addr, APIPort).String(), true
	})
}
