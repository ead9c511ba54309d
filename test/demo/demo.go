package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// demo is the cluster with its VMs, and what really happened in it.
type demo struct {
	cluster *minicluster.Cluster
	client  *client.Client
	truth   *truth
	logs    *os.File
	vms     []haven.VMID

	mu    sync.Mutex
	first haven.HostID // whom to ask first: the master, as far as is known
}

// vmMemoryMiB is what each VM wants.
const vmMemoryMiB = 512

func newDemo(o options, dir string) (*demo, error) {
	dir, err := filepath.Abs(dir) // The store children want it so.
	if err != nil {
		return nil, err
	}
	logs, err := os.OpenFile(filepath.Join(dir, "agents.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	d := &demo{truth: newTruth(), logs: logs}
	log := slog.New(slog.NewTextHandler(logs, nil))
	d.cluster, err = minicluster.New(minicluster.Options{
		Hosts: o.hosts, Dir: dir, StoreChild: []string{"/proc/self/exe", storeChild}, Net: freeNet(o.hosts),
		// All VMs fit on two hosts, so that most of the hosts may die.
		MemoryMiB: uint64(o.vms+1)/2*vmMemoryMiB + 2048,
		OnEvent:   d.truth.note,
		Log:       func(host haven.HostID) *slog.Logger { return log.With("self", host) },
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the cluster: %w", err), logs.Close())
	}
	if d.client, err = d.cluster.Client(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	for i := range o.vms {
		if err := d.userStarts(i, d.cluster.Hosts()[i%o.hosts]); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

// userStarts starts a VM on a host as its user does, who knows nothing of Haven.
func (d *demo) userStarts(i int, h *minicluster.Host) error {
	id := haven.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1))
	_, err := h.Machine.UserStart(world.XML(id, fmt.Sprintf("vm-%02d", i+1), vmMemoryMiB))
	d.vms = append(d.vms, id)
	return err
}

func (d *demo) close() error {
	d.cluster.Close()
	return d.logs.Close()
}

func (d *demo) whatIsReal() string {
	return fmt.Sprintf(`Haven demo: %d hosts with %d VMs in one process.
  real:     agents, gossip, Raft, mutual TLS, HTTPS API, beats on a shared directory, IPMI 2.0 over UDP, fencing, orders
  embedded: the hosts' power, cables, VM managers and VMs, and the boards that speak IPMI
`, len(d.cluster.Hosts()), len(d.vms))
}

// freeNet picks a part of 127/8 in which nobody listens where the hosts will.
func freeNet(hosts int) [2]byte {
	var pick [2]byte
	for range 20 {
		_, _ = rand.Read(pick[:]) // It never fails.
		pick[0] = 64 + pick[0]%128
		if netIsFree(pick, hosts) {
			break
		}
	}
	return pick
}

func netIsFree(pick [2]byte, hosts int) bool {
	for i := range hosts {
		for _, port := range []int{minicluster.APIPort, minicluster.GossipPort} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:%d", pick[0], pick[1], 11+i, port))
			if err != nil {
				return false
			}
			_ = l.Close() // Nothing was accepted on it.
		}
	}
	return true
}

// perHost bounds one attempt to ask one agent; the next one is asked then. An
// agent needs two seconds to find that the master does not answer it.
const perHost = 3 * time.Second

// get asks the master, or another agent when the master does not answer. Only
// agents that run and can be reached are asked.
func (d *demo) get(ctx context.Context, path string, out any) error {
	err := errors.New("no agent runs that can be reached")
	for _, h := range d.order() {
		ask, cancel := context.WithTimeout(ctx, perHost)
		err = d.client.Get(ask, h.ID, path, out)
		cancel()
		if e, ok := errors.AsType[*client.Error](err); err == nil || ok && e.Status/100 == 4 || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// order lists the agents to ask, the likely master first.
func (d *demo) order() []*minicluster.Host {
	d.mu.Lock()
	first := d.first
	d.mu.Unlock()
	hosts := slices.DeleteFunc(slices.Clone(d.cluster.Hosts()), func(h *minicluster.Host) bool {
		return !h.AgentRuns() || h.NetworkCut()
	})
	if i := slices.IndexFunc(hosts, func(h *minicluster.Host) bool { return h.ID == first }); i > 0 {
		hosts = slices.Concat(hosts[i:], hosts[:i])
	}
	return hosts
}

// learn remembers who is master. From a host that could not reach it, the next
// one is asked.
func (d *demo) learn(st client.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !st.Stale && st.Master != "":
		d.first = st.Master
	case st.Stale && d.first == st.Self || d.first == "":
		hosts := d.cluster.Hosts()
		i := slices.IndexFunc(hosts, func(h *minicluster.Host) bool { return h.ID == st.Self })
		d.first = hosts[(i+1)%len(hosts)].ID
	}
}

// status asks how the cluster is.
func (d *demo) status(ctx context.Context) (st client.Status, err error) {
	if err = d.get(ctx, "/v1/status", &st); err == nil {
		d.learn(st)
	}
	return st, err
}
