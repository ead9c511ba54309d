package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/pki"
)

// routes is the whole API.
func (a *Agent) routes() []api.Route {
	return slices.Concat(a.peerRoutes(), a.operatorRoutes(), a.operateRoutes())
}

// peerRoutes are for other agents.
func (a *Agent) peerRoutes() []api.Route {
	host := func(pattern string, limit int64, serve func(context.Context, *api.Call) (any, error)) api.Route {
		return api.Route{Pattern: pattern, Need: api.NeedHost, MaxBytes: limit, Serve: serve}
	}
	return []api.Route{
		host("GET "+client.PathHello, 0, func(ctx context.Context, _ *api.Call) (any, error) { return a.Hello(ctx) }),
		host("POST "+client.PathReport, client.MaxReportBytes, taking(a.TakeReport)),
		host("GET "+client.PathInventory, 0, func(ctx context.Context, _ *api.Call) (any, error) { return a.Inventory(ctx) }),
		host("GET "+client.PathDefinition, 0, func(ctx context.Context, c *api.Call) (any, error) {
			id, err := haven.ParseVMID(c.Path("vm"))
			if err != nil {
				return nil, badRequest(err)
			}
			return a.Definition(ctx, id)
		}),
		host("POST "+client.PathOrders, client.MaxOrderBytes, taking(func(ctx context.Context, from haven.HostID, q *client.OrderRequest) (haven.OrderReport, error) {
			return a.TakeOrder(ctx, from, *q)
		})),
		host("POST "+client.PathStop, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *client.StopRequest) (client.StopAnswer, error) {
			return a.TakeStop(ctx, from, *q)
		})),
		host("POST "+client.PathProbe, client.MaxSmallBytes, taking(func(ctx context.Context, _ haven.HostID, q *client.ProbeRequest) (client.ProbeAnswer, error) {
			return a.Probe(ctx, *q)
		})),
		host("POST "+client.PathDisks, client.MaxDisksBytes, taking(func(ctx context.Context, from haven.HostID, q *client.DiskRequest) (client.DiskAnswer, error) {
			return a.DiskActivity(ctx, from, *q)
		})),
		host("POST "+client.PathConfirm, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *client.ConfirmRequest) (client.ConfirmAnswer, error) {
			return a.Confirm(ctx, from, *q)
		})),
		host("POST "+client.PathPower, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *client.PowerRequest) (client.PowerAnswer, error) {
			return a.Power(ctx, from, *q)
		})),
		host("POST "+client.PathPermit, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *client.PermitRequest) (client.PermitAnswer, error) {
			return a.Permit(ctx, from, *q)
		})),
		host("POST "+client.PathPill, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *client.PillRequest) (client.PillAnswer, error) {
			return a.PillStands(ctx, from, *q)
		})),
		host("POST "+client.PathPillLeave, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *client.LeavePillRequest) (client.LeavePillAnswer, error) {
			return a.LeavePill(ctx, from, *q)
		})),
		host("POST "+client.PathPromise, client.MaxSmallBytes, taking(func(ctx context.Context, from haven.HostID, q *election.PromiseRequest) (election.PromiseReply, error) {
			return a.election.Promises().Request(ctx, from, a.cfg.HostIDs(), *q)
		})),
		host("POST "+client.PathWithdrawn, client.MaxSmallBytes, taking(func(_ context.Context, _ haven.HostID, p *election.Promise) (bool, error) {
			return a.election.Promises().Withdrawn(*p), nil
		})),
	}
}

// taking makes a route of a function of who asks and of the decoded body.
func taking[Q, A any](serve func(context.Context, haven.HostID, *Q) (A, error)) func(context.Context, *api.Call) (any, error) {
	return func(ctx context.Context, c *api.Call) (any, error) {
		var q Q
		if err := c.Decode(&q); err != nil {
			return nil, err
		}
		return serve(ctx, c.From, &q)
	}
}

func badRequest(err error) error {
	return &client.Error{Problem: client.Problem{Title: "bad request", Status: http.StatusBadRequest, Detail: err.Error()}}
}

// operatorRoutes are for people and their programs.
func (a *Agent) operatorRoutes() []api.Route {
	view := func(path string, serve func(context.Context, *api.Call) (any, error)) api.Route {
		return api.Route{Pattern: "GET " + path, Need: api.NeedViewer, Serve: serve}
	}
	act := func(path string, need api.Need, serve func(context.Context, *api.Call, client.Act) error) api.Route {
		return api.Route{Pattern: "POST " + path, Need: need, MaxBytes: client.MaxSmallBytes, Serve: a.acting(serve)}
	}
	return []api.Route{
		view("/v1/members", func(context.Context, *api.Call) (any, error) { return a.viewMembers(), nil }),
		view("/v1/raft", func(context.Context, *api.Call) (any, error) { return a.viewRaft(), nil }),
		view("/v1/status", a.atMaster(func(bool) (any, error) { return a.viewStatus(), nil })),
		view("/v1/hosts", a.atMaster(func(bool) (any, error) { return a.viewHosts(), nil })),
		view("/v1/vms", a.atMaster(func(bool) (any, error) { return a.viewVMs(), nil })),
		view("/v1/incidents", a.atMaster(func(bool) (any, error) { return a.viewIncidents(), nil })),
		view("/v1/incidents/{id}", func(ctx context.Context, c *api.Call) (any, error) {
			return a.atMaster(func(bool) (any, error) { return a.viewIncident(haven.IncidentID(c.Path("id"))) })(ctx, c)
		}),
		view("/v1/incidents/{id}/recording", func(ctx context.Context, c *api.Call) (any, error) {
			return a.atMaster(func(bool) (any, error) {
				return a.readRecording(ctx, haven.IncidentID(c.Path("id")), c.Query("offset"))
			})(ctx, c)
		}),
		view("/healthz", func(context.Context, *api.Call) (any, error) { return map[string]string{"status": "ok"}, nil }),
		view("/readyz", func(context.Context, *api.Call) (any, error) { return a.viewReady() }),
		{Pattern: "POST " + client.PathNotifyTest, Need: api.NeedOperator, MaxBytes: client.MaxSmallBytes, Serve: a.testNotify},
		act("/v1/arm", api.NeedOperator, a.arm(true)),
		act("/v1/disarm", api.NeedOperator, a.arm(false)),
		act("/v1/hosts/{host}/maintenance", api.NeedOperator, a.maintenance(true)),
		act("/v1/hosts/{host}/maintenance/end", api.NeedOperator, a.maintenance(false)),
		view("/v1/hosts/{host}/decisions", func(ctx context.Context, c *api.Call) (any, error) {
			return a.atMaster(func(bool) (any, error) { return a.viewDecisions(haven.HostID(c.Path("host"))) })(ctx, c)
		}),
		act("/v1/hosts/{host}/confirm-dead", api.NeedOperator, a.confirmDead),
		act("/v1/hosts/{host}/release", api.NeedAdmin, a.releaseHost),
		act("/v1/hosts/{host}/trust-bmc", api.NeedAdmin, a.trustPower),
	}
}

// askMasterTimeout bounds how long an operator's question waits for the master.
const askMasterTimeout = 2 * time.Second

// atMaster answers from the master, who alone knows everything. An agent that
// cannot reach it answers from its own copy of the ledger; /v1/status then says
// stale.
func (a *Agent) atMaster(serve func(stale bool) (any, error)) func(context.Context, *api.Call) (any, error) {
	return func(ctx context.Context, c *api.Call) (any, error) {
		if a.isMaster() {
			return serve(false)
		}
		if master, ok := a.master(); ok && master != a.d.Host && c.From == "" {
			var answer json.RawMessage
			// The master may have died a moment ago: what is known here, and
			// marked as old, is worth more than an answer that never comes.
			ask, cancel := context.WithTimeout(ctx, askMasterTimeout)
			err := a.client.Get(ask, master, c.URI(), &answer)
			cancel()
			if err == nil {
				return answer, nil
			}
			a.log.Debug("master did not answer for an operator", "master", master, "error", err)
		}
		if a.ledger.Generation() == 0 {
			own := ""
			if h, ok := a.selfHold(); ok {
				own = "; " + h.Detail
			} else if said := a.selfSentence(a.viewSelf()); said != "" {
				own = "; " + strings.TrimSuffix(said, ".")
			}
			return nil, fmt.Errorf("no master can be reached, and this agent has no copy of the ledger%s: %w", own, haven.ErrUnavailable)
		}
		return serve(true)
	}
}

// acting makes a route of an operator's act. The master carries it out; any
// other agent passes it on, in the operator's name.
func (a *Agent) acting(serve func(context.Context, *api.Call, client.Act) error) func(context.Context, *api.Call) (any, error) {
	return func(ctx context.Context, c *api.Call) (any, error) {
		var q client.Act
		if err := c.Decode(&q); err != nil {
			return nil, err
		}
		if err := sign(&q, c); err != nil {
			return nil, err
		}
		if !a.isMaster() {
			return a.passOn(ctx, c, q)
		}
		if err := serve(ctx, c, q); err != nil {
			return nil, err
		}
		a.log.Warn("operator acted", "by", q.By, "what", c.URI(), "reason", q.Reason)
		a.notifyActed(c, q)
		return map[string]string{"status": "done"}, nil
	}
}

// Bounds of an operator's words: they are kept in the ledger.
const (
	maxBy     = 200
	maxReason = 1000
)

// sign puts the name of who acts under an act. Only an admin may act in another
// name, and is named too. What a host passes on was signed where it came in.
func sign(q *client.Act, c *api.Call) error {
	switch {
	case q.By == "" || c.From == "" && c.Role != pki.RoleAdmin:
		q.By = c.By
	case c.From == "":
		q.By += " as " + c.By
	}
	for _, w := range []struct {
		name, text string
		limit      int
	}{{"by", q.By, maxBy}, {"reason", q.Reason, maxReason}} {
		// It is shown on terminals, too.
		if len(w.text) > w.limit || !utf8.ValidString(w.text) || strings.ContainsFunc(w.text, unicode.IsControl) {
			return badRequest(fmt.Errorf("%s: want at most %d characters on one line", w.name, w.limit))
		}
	}
	return nil
}

func (a *Agent) passOn(ctx context.Context, c *api.Call, q client.Act) (any, error) {
	master, ok := a.master()
	if !ok || c.From != "" || master == a.d.Host {
		return nil, &client.Error{Problem: client.Problem{Title: haven.ErrNotMaster.Error(), Status: http.StatusMisdirectedRequest, Master: master}}
	}
	var answer json.RawMessage
	err := a.client.PostFor(ctx, master, c.URI(), c.By, string(c.Role), q, &answer)
	return answer, err
}
