package simnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/sim/simnet"
	"github.com/haven-ha/haven/internal/tlsmux"
)

var (
	addrA = netip.MustParseAddr("10.0.0.1")
	addrB = netip.MustParseAddr("10.0.0.2")
)

// pair runs f in a bubble with two machines that have power.
func pair(t *testing.T, link simnet.Link, f func(t *testing.T, n *simnet.Net, a, b *simnet.Machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1, link)
		a, b := n.Add(addrA), n.Add(addrB)
		a.PowerOn()
		b.PowerOn()
		f(t, n, a, b)
		a.PowerOff()
		b.PowerOff()
		time.Sleep(3 * time.Minute)
		n.Close()
	})
}

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

// echo answers every stream with what it says.
func echo(t *testing.T, p *simnet.Process) {
	t.Helper()
	l, err := p.Listen("tcp", "0.0.0.0:80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
}

func dial(t *testing.T, p *simnet.Process, limit time.Duration) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return p.DialContext(ctx, "tcp", at(addrB, 80))
}

// ping sends a word that was never sent before and waits until it comes back;
// late answers to earlier pings are skipped.
func ping(c net.Conn, limit time.Duration) (time.Duration, error) {
	begun := time.Now()
	if err := c.SetDeadline(begun.Add(limit)); err != nil {
		return 0, err
	}
	word := fmt.Sprintf("%20d", begun.UnixNano())
	if _, err := c.Write([]byte(word)); err != nil {
		return time.Since(begun), err
	}
	for got := make([]byte, len(word)); ; {
		if _, err := io.ReadFull(c, got); err != nil || string(got) == word {
			return time.Since(begun), err
		}
	}
}

func TestStreamFaults(t *testing.T) {
	link := simnet.Link{Latency: 5 * time.Millisecond}
	pair(t, link, func(t *testing.T, n *simnet.Net, a, b *simnet.Machine) {
		pa, pb := a.Process(), b.Process()
		echo(t, pb)
		c, err := dial(t, pa, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := ping(c, time.Second); err != nil || d != 10*time.Millisecond {
			t.Errorf("healthy: %v after %s, want 10ms", err, d)
		}

		n.Cut(addrB, addrA, true)
		if d, err := ping(c, 2*time.Second); !isTimeout(err) || d != 2*time.Second {
			t.Errorf("answers cut: %v after %s, want a timeout after 2s", err, d)
		}
		if _, err := dial(t, pa, 3*time.Second); !isTimeout(err) {
			t.Errorf("dial with answers cut: %v, want a timeout", err)
		}
		n.Cut(addrB, addrA, false)
		// The late answer to the first ping arrives, and then all is well.
		if _, err := ping(c, 30*time.Second); err != nil {
			t.Errorf("after the cut: %v", err)
		}

		b.Freeze(true)
		if d, err := ping(c, time.Second); !isTimeout(err) || d != time.Second {
			t.Errorf("frozen: %v after %s, want a timeout", err, d)
		}
		b.Freeze(false)
		if _, err := ping(c, 10*time.Second); err != nil {
			t.Errorf("thawed: %v", err)
		}

		pb.Kill()
		if _, err := ping(c, time.Second); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("killed: %v, want a reset", err)
		}
		if _, err := dial(t, pa, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to a killed process: %v, want a refusal", err)
		}

		b.PowerOff()
		if d, err := dialTook(t, pa, 4*time.Second); !isTimeout(err) || d != 4*time.Second {
			t.Errorf("dial to a machine without power: %v after %s, want a timeout", err, d)
		}
		if _, err := pb.Listen("tcp", "0.0.0.0:80"); err == nil {
			t.Error("a killed process can listen")
		}
	})
}

func dialTook(t *testing.T, p *simnet.Process, limit time.Duration) (time.Duration, error) {
	t.Helper()
	begun := time.Now()
	_, err := dial(t, p, limit)
	return time.Since(begun), err
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// A stream to a machine whose power went is broken in the end, and one whose
// machine came back is reset: its process is gone.
func TestPowerLossBreaksStreams(t *testing.T) {
	pair(t, simnet.Link{Latency: time.Millisecond}, func(t *testing.T, _ *simnet.Net, a, b *simnet.Machine) {
		pa, pb := a.Process(), b.Process()
		echo(t, pb)
		c, err := dial(t, pa, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		b.PowerOff()
		if _, err := ping(c, time.Second); !isTimeout(err) {
			t.Errorf("without power: %v, want silence", err)
		}
		b.PowerOn()
		if _, err := ping(c, 20*time.Second); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after a boot: %v, want a reset", err)
		}
	})
}

// What is lost is sent again, in order; packets stay lost.
func TestLoss(t *testing.T) {
	pair(t, simnet.Link{Latency: time.Millisecond, Jitter: 3 * time.Millisecond, Loss: 0.3}, func(t *testing.T, _ *simnet.Net, a, b *simnet.Machine) {
		pa, pb := a.Process(), b.Process()
		echo(t, pb)
		c, err := dial(t, pa, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		var sent []byte
		for i := range 200 {
			line := fmt.Appendf(nil, "line %d\n", i)
			sent = append(sent, line...)
			if _, err := c.Write(line); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		got := make([]byte, len(sent))
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, got); err != nil || string(got) != string(sent) {
			t.Errorf("stream under loss: %v, equal: %v", err, string(got) == string(sent))
		}

		in, err := pb.ListenPacket("udp", at(addrB, 53))
		if err != nil {
			t.Fatal(err)
		}
		out, err := pa.ListenPacket("udp", at(addrA, 0))
		if err != nil {
			t.Fatal(err)
		}
		const total = 1000
		for range total {
			if _, err := out.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrB, 53))); err != nil {
				t.Fatal(err)
			}
		}
		arrived := 0
		for {
			_ = in.SetReadDeadline(time.Now().Add(time.Second))
			if _, _, err := in.ReadFrom(make([]byte, 10)); err != nil {
				break
			}
			arrived++
		}
		if arrived < 600 || arrived > 800 {
			t.Errorf("%d of %d packets arrived at 30 %% loss", arrived, total)
		}
	})
}

// The fate of packets in one direction does not depend on what happens in
// another one.
func TestDrawsAreKeyed(t *testing.T) {
	run := func(noise bool) (fates string) {
		pair(t, simnet.Link{Latency: time.Millisecond, Loss: 0.5}, func(t *testing.T, _ *simnet.Net, a, b *simnet.Machine) {
			pa, pb := a.Process(), b.Process()
			in, _ := pb.ListenPacket("udp", at(addrB, 53))
			out, _ := pa.ListenPacket("udp", at(addrA, 54))
			for i := range 64 {
				_, _ = out.WriteTo([]byte{byte(i)}, in.LocalAddr())
				if noise {
					_, _ = in.WriteTo([]byte("noise"), out.LocalAddr())
				}
			}
			buf := make([]byte, 1)
			for {
				_ = in.SetReadDeadline(time.Now().Add(time.Second))
				if _, _, err := in.ReadFrom(buf); err != nil {
					return
				}
				fates += fmt.Sprint(buf[0], " ")
			}
		})
		return fates
	}
	if quiet, noisy := run(false), run(true); quiet != noisy {
		t.Errorf("other traffic changed what is lost:\n%s\n%s", quiet, noisy)
	}
}

// The agents' own server and client, mutual TLS and HTTP/2, work on it.
func TestTLS(t *testing.T) {
	pair(t, simnet.Link{Latency: 2 * time.Millisecond}, func(t *testing.T, _ *simnet.Net, a, b *simnet.Machine) {
		ca, err := pki.NewCA("sim", pki.DefaultCALifetime)
		if err != nil {
			t.Fatal(err)
		}
		creds := map[haven.HostID]*pki.Credentials{}
		for id, addr := range map[haven.HostID]netip.Addr{"a": addrA, "b": addrB} {
			kp, err := ca.IssueHost(id, []netip.Addr{addr}, pki.DefaultHostLifetime)
			if err != nil {
				t.Fatal(err)
			}
			if creds[id], err = pki.NewCredentials("sim", ca.Pair().Cert, kp); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		mux, err := tlsmux.Listen(tlsmux.Config{Stack: b.Process(), Addr: at(addrB, 7947), Credentials: creds["b"], Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Proto)
		})}
		var wg sync.WaitGroup
		wg.Go(func() { _ = mux.Run(ctx) })
		wg.Go(func() { _ = srv.Serve(mux.HTTP()) })
		tr := tlsmux.NewTransport(a.Process(), creds["a"], func(haven.HostID) (string, bool) { return at(addrB, 7947), true })
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://b/", nil)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "HTTP/2.0" {
			t.Errorf("answer %q, %v", body, err)
		}
		_ = resp.Body.Close()
		tr.CloseIdleConnections()
		_ = srv.Close()
		cancel()
		wg.Wait()
	})
}
