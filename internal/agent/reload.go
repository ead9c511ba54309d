package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/haven-ha/haven/internal/notify"
)

// Reload reads again what may change while the agent runs: all secrets, the gossip
// keys and the certificates. What cannot be used leaves what was read before in
// use; the problems that are returned are in the log, and people are told. The
// configuration's own problem, if its file cannot be used any more, comes from the
// caller. It takes a few seconds at most, unless the file system hangs.
func (a *Agent) Reload(configuration error) (problems []error) {
	if configuration != nil {
		problems = append(problems, fmt.Errorf("configuration: %w", configuration))
	}
	changed := 0
	if a.d.Secrets != nil {
		for _, f := range a.d.Secrets.Reload() {
			switch {
			case f.Err != nil:
				problems = append(problems, fmt.Errorf("secret in %s: %w", f.Path, f.Err))
			case f.Changed:
				changed++
				a.log.Info("a secret was read again and is another one now", "file", f.Path)
			}
		}
	}
	if changed > 0 { // The same password again would only bring an account nearer to its lock.
		select {
		case a.reloaded <- struct{}{}:
		default:
		}
	}
	if a.d.RereadGossipKeys != nil {
		keys, err := a.d.RereadGossipKeys()
		if err == nil {
			var other bool
			if other, err = a.cluster.SetKeys(keys); err == nil {
				err = a.pills.keys.set(a.cfg.Cluster, keys)
			}
			if other {
				changed++
				a.log.Info("gossip keys were read again and are others now", "keys", a.cluster.Keys())
			}
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("gossip keys: %w", err))
		}
	}
	if err := a.d.Credentials.Reload(); err != nil {
		problems = append(problems, fmt.Errorf("certificates: %w", err))
	}
	for _, p := range problems {
		a.log.Error("reload: what was read before stays in use", "error", p)
	}
	a.log.Info("reloaded", "changed", changed, "problems", len(problems))
	a.notifyReload(problems)
	return problems
}

// reloadTold is how many problems of one reload people are told by name.
const reloadTold = 3

func (a *Agent) notifyReload(problems []error) {
	if len(problems) == 0 {
		return
	}
	var words []string
	for _, p := range problems[:min(len(problems), reloadTold)] {
		words = append(words, strings.ReplaceAll(p.Error(), "\n", " "))
	}
	text := fmt.Sprintf("the reload on %s left what was read before in use: %s", a.d.Host, strings.Join(words, "; "))
	if more := len(problems) - reloadTold; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	a.notify(notify.Event{
		Kind: notify.KindReloadBad, Host: a.d.Host, Text: text,
		ID: notify.NewID(notify.KindReloadBad, string(a.d.Host), time.Now().UTC().Format(time.RFC3339)),
	})
}
