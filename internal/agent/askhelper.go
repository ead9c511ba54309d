package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/helper"
)

// maxHelperAnswer bounds what is read of a helper's answer.
const maxHelperAnswer = 1 << 20

// askHelper says whether a helper answers, and in which state it finds the
// agent's unit. One that answers with an error, as it does while the VM manager
// hangs, shows that the host lives. Both questions are asked at once: the one
// for the unit is answered also while the VM manager hangs.
func askHelper(ctx context.Context, c *http.Client, cfg *config.Config, password *config.SecretFile, id haven.HostID) (haven.Tri, string) {
	host, ok := cfg.Host(id)
	if !ok || host.Role == haven.RoleWitness {
		return haven.Unknown, "it has no helper"
	}
	unit := make(chan reply, 1)
	go func() { unit <- get(ctx, c, cfg, password, host, "/agent") }() // It ends with ctx.
	list := get(ctx, c, cfg, password, host, "/")
	about := <-unit
	if list.value != haven.Yes && about.value != haven.Yes {
		return list.value, list.words
	}
	if about.status != http.StatusOK { // A helper of an older version, perhaps.
		return haven.Yes, fmt.Sprintf("it answers; of %s nothing is known", helper.AgentUnit)
	}
	var u helper.Unit
	if err := json.Unmarshal(about.body, &u); err != nil {
		return haven.Yes, fmt.Sprintf("it answers; of %s nothing is known", helper.AgentUnit)
	}
	return haven.Yes, u.String()
}

// reply is what came of one question.
type reply struct {
	value  haven.Tri
	words  string
	status int
	body   []byte
}

func get(ctx context.Context, c *http.Client, cfg *config.Config, password *config.SecretFile, host config.Host, path string) reply {
	scheme := "https"
	if cfg.Helper.Plain {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+hostPort(host.Address, cfg.Helper.Port)+path, nil)
	if err != nil {
		return reply{value: haven.Unknown, words: err.Error()}
	}
	if cfg.Helper.Username != "" {
		text, err := password.Text()
		if err != nil {
			return reply{value: haven.Unknown, words: err.Error()}
		}
		req.SetBasicAuth(cfg.Helper.Username, text)
	}
	resp, err := c.Do(req)
	if err != nil {
		return reply{value: answerOf(err), words: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }() // read to its end or not, it is done with
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHelperAnswer))
	if err != nil {
		return reply{value: haven.Unknown, words: err.Error()} // it began to answer
	}
	if resp.StatusCode == http.StatusUnauthorized {
		password.Refused()
	}
	return reply{value: haven.Yes, words: resp.Status, status: resp.StatusCode, body: body}
}
