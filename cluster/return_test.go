package cluster

import (
	"maps"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// TestHostReturnsWithANewAddress: a host that died, or was stopped, and comes back
// under its name at another address, which all configurations have by then, is
// taken back as a configured host and as nobody's rival. Gossip holds its
// old address for ReclaimAfter, in which only its own host could have it.
func TestHostReturnsWithANewAddress(t *testing.T) {
	tests := []struct {
		name string
		end  func(t *testing.T, a *agent)
		in   time.Duration // after its return
	}{
		{"it died", func(_ *testing.T, a *agent) { a.kill() }, DefaultTiming().ReclaimAfter + 30*time.Second},
		{"it left", func(t *testing.T, a *agent) {
			if err := a.Leave(t.Context(), haven.LeaveShutdown); err != nil {
				t.Error(err)
			}
			a.kill()
		}, 30 * time.Second},
	}
	for _, order := range []string{"others first", "itself first"} {
		for _, tt := range tests {
			t.Run(tt.name+", "+order, func(t *testing.T) {
				inBubble(t, 3, func(t *testing.T, l *lab) {
					l.startAll()
					waitFor(t, 20*time.Second, "join", l.complete)
					old := l.agents[2]
					peers := maps.Clone(l.peers)
					peers["h3"] = hostAddr(33)
					tt.end(t, old)
					waitFor(t, 30*time.Second, "h3 is gone", func() bool {
						return l.agents[0].member("h3").State != StateAlive && l.agents[1].member("h3").State != StateAlive
					})
					tell := func() {
						for _, a := range l.agents[:2] {
							if err := a.SetPeers(peers); err != nil {
								t.Fatal(err)
							}
						}
					}
					if order == "others first" {
						tell()
					}
					cfg := l.config(3)
					cfg.Bind, cfg.Peers, cfg.Net = hostAddr(33), peers, simHost{l.net, hostAddr(33).Addr()}
					back := l.start(cfg)
					if order == "itself first" {
						time.Sleep(3 * time.Second)
						tell()
					}
					waitFor(t, tt.in, "h3 is taken back", func() bool {
						for _, a := range l.agents[:2] {
							m := a.member("h3")
							if !m.Trusted() || m.Addr != hostAddr(33) || !back.member(a.id).Trusted() {
								return false
							}
						}
						return true
					})
					if m := l.agents[0].member("h3"); m.Leave != haven.LeaveNone {
						t.Errorf("it is said to have left: %q", m.Leave)
					}
				})
			})
		}
	}
}

// TestAnnounce: an agent that is about to leave stays a member, and may think
// better of it. If it is gone without another word, it has left.
func TestAnnounce(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, l *lab) {
		l.startAll()
		waitFor(t, 20*time.Second, "join", l.complete)
		leaver := l.agents[2]
		said := func(reason haven.LeaveReason) func() bool {
			return func() bool {
				for _, a := range l.agents[:2] {
					if m := a.member("h3"); m.State != StateAlive || m.Leave != reason {
						return false
					}
				}
				return true
			}
		}
		for _, reason := range []haven.LeaveReason{haven.LeaveShutdown, haven.LeaveNone, haven.LeaveShutdown} {
			if err := leaver.Announce(reason); err != nil {
				t.Fatal(err)
			}
			waitFor(t, 15*time.Second, "others know "+string(reason), said(reason))
			if err := leaver.SetMeta(Meta{Boot: "boot-3", APIPort: 1}); err != nil { // says nothing of it
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if !said(reason)() {
				t.Errorf("other news take back that it is leaving: %q", reason)
			}
		}
		if err := leaver.Announce("tired"); err == nil {
			t.Error("a reason that cannot be told was taken")
		}
		leaver.kill()
		waitFor(t, 30*time.Second, "it has left", l.allSee(StateLeft, "h3"))
		if err := leaver.Announce(haven.LeaveNone); err == nil {
			t.Error("taken back after the end")
		}
	})
}

// TestAnnounceKeepsNews: what is told at the same time is not taken back by it.
func TestAnnounceKeepsNews(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, l *lab) {
		l.startAll()
		a := l.agents[0]
		var others sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			others.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					for _, reason := range []haven.LeaveReason{haven.LeaveShutdown, haven.LeaveNone} {
						if err := a.Announce(reason); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		for port := range uint16(8000) {
			if err := a.SetMeta(Meta{Boot: "boot-1", APIPort: port}); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
			a.mu.Lock()
			got := a.meta.APIPort
			a.mu.Unlock()
			if got != port {
				t.Errorf("port %d was told, and is %d again", port, got)
				break
			}
		}
		close(stop)
		others.Wait()
	})
}
