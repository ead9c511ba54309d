package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/client"
)

// look probes a host from here, all kinds at once. Every kind gets an answer
// within the probe timeout; what could not be tried is unknown.
func (a *Agent) look(ctx context.Context, host haven.HostID, kinds []haven.EvidenceKind, limit time.Duration) []client.ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	results := make([]client.ProbeResult, len(kinds))
	var wg sync.WaitGroup
	for i, kind := range kinds {
		wg.Go(func() {
			value, detail := a.lookOnce(ctx, host, kind)
			results[i] = client.ProbeResult{Kind: kind, Value: value, Detail: detail}
		})
	}
	wg.Wait()
	return results
}

func (a *Agent) lookOnce(ctx context.Context, host haven.HostID, kind haven.EvidenceKind) (haven.Tri, string) {
	conf, ok := a.cfg.Host(host)
	if !ok {
		return haven.Unknown, "not a configured host"
	}
	switch kind {
	case haven.EvidenceProbeAgent:
		hello, err := a.client.Hello(ctx, host)
		if err != nil {
			return answerOf(err), err.Error()
		}
		return haven.Yes, "boot " + string(hello.Boot)
	case haven.EvidenceProbeHelper:
		if a.d.Helper == nil {
			return haven.Unknown, "no helper is configured"
		}
		return a.d.Helper(ctx, host)
	case haven.EvidenceProbeTCP:
		return a.knock(ctx, hostPort(conf.Address, a.cfg.API.Port))
	default:
		return haven.Unknown, "cannot be probed"
	}
}

// knock opens a TCP connection. A refusal is an answer too: somebody is there
// to refuse.
func (a *Agent) knock(ctx context.Context, addr string) (haven.Tri, string) {
	conn, err := a.d.Net.DialContext(ctx, "tcp", addr)
	switch {
	case err == nil:
		_ = conn.Close() // nothing was sent
		return haven.Yes, "connected"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return haven.Yes, "refused, so its network stack lives"
	}
	return answerOf(err), err.Error()
}

// answerOf says what a question that failed tells of who was asked. Only silence
// and refusal are an answer of no; what went wrong on this side of the wire tells
// nothing (P5).
func answerOf(err error) haven.Tri {
	if _, answered := errors.AsType[*client.Error](err); answered {
		return haven.Yes
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return haven.Yes // It closed the door on this agent: its certificate has expired, perhaps.
	}
	if _, another := errors.AsType[*tls.CertificateVerificationError](err); another {
		return haven.Unknown // Somebody answers there, who did not prove to be that host.
	}
	if _, another := errors.AsType[tls.RecordHeaderError](err); another {
		return haven.Unknown // Likewise.
	}
	for _, own := range []error{
		context.Canceled, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EMFILE, syscall.ENFILE,
		syscall.EPERM, syscall.EACCES, syscall.ENOBUFS, syscall.ENOMEM,
	} {
		if errors.Is(err, own) {
			return haven.Unknown
		}
	}
	return haven.No
}

// probeAround has a suspect probed by this agent and by some neighbours.
func (a *Agent) probeAround(ctx context.Context, suspect haven.HostID, kinds []haven.EvidenceKind, neighbours int, limit time.Duration) {
	for _, observer := range append(a.neighboursFor(suspect, neighbours), a.d.Host) {
		a.owned.Go(func() {
			begun := time.Now()
			answer, err := a.askNeighbour(ctx, observer, suspect, kinds, limit)
			if err != nil && ctx.Err() == nil {
				a.log.Debug("neighbour did not answer about a suspect", "observer", observer, "host", suspect, "error", err)
			}
			if ctx.Err() == nil {
				a.asked.answered(observer, err == nil, time.Now())
			}
			if len(answer.Beats) > 0 {
				a.ev.tell(suspect, told{observer: observer, beats: answer.Beats, asked: begun, at: time.Now()})
			}
			a.takeProbes(observer, suspect, kinds, answer.Results, begun)
		})
	}
}

func (a *Agent) askNeighbour(ctx context.Context, observer, suspect haven.HostID, kinds []haven.EvidenceKind, limit time.Duration) (client.ProbeAnswer, error) {
	if observer == a.d.Host {
		return client.ProbeAnswer{Results: a.look(ctx, suspect, kinds, limit)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit+a.cfg.Detection.ProbeTimeout/2)
	defer cancel()
	return a.client.Probe(ctx, observer, client.ProbeRequest{Host: suspect, Kinds: kinds, Limit: client.MillisOf(limit), Term: a.term()})
}

// maxProbeDetail bounds the words of an answer that are kept.
const maxProbeDetail = 200

// takeProbes records what an observer found. A kind without an answer is
// recorded as unknown: it was asked and nothing is known (P5).
func (a *Agent) takeProbes(observer, suspect haven.HostID, kinds []haven.EvidenceKind, results []client.ProbeResult, begun time.Time) {
	finished := a.at(time.Now())
	for _, kind := range kinds {
		p := detector.Probe{Observer: observer, Kind: kind, Started: a.at(begun), Finished: finished}
		for _, r := range results {
			if r.Kind == kind {
				p.Result = r.Value
				if kind == haven.EvidenceProbeHelper && r.Value == haven.Yes {
					p.Detail = strings.ToValidUTF8(r.Detail[:min(len(r.Detail), maxProbeDetail)], "")
				}
			}
		}
		a.ev.probe(suspect, p)
	}
	a.kick()
}
