package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A lab with feeds has hosts with that many power supplies. The supplies called a
// are plugged into one switched power strip, those called b into another: programs
// of their own with addresses on the BMCs' network, on which each host has the
// outlet of its name. A host lives as long as one of its supplies has power, and so
// does its BMC. When the power comes back after none had any, the BMC starts and
// the host boots, as servers do that are set to.

const (
	maxFeeds  = 2
	stripPort = "9000"
	stripTime = 20 * time.Second // for one connection
)

// What the program that switches outlets, see [Feed], ends with when it is asked
// for the status. Any other end is an error.
const (
	OutletOn  = 10
	OutletOff = 11
)

// Feed is one power supply of a host.
type Feed struct {
	Name  string // a or b, as the strip that it is plugged into
	Strip string // that strip's address
	// Program, with the arguments haven-lab:outlet, the strip's address, the word
	// on, off or status and the host's name, is how a host switches an outlet.
	Program string
}

// feedNames are the names of each host's supplies, and of the strips.
func (s *spec) feedNames() []string { return []string{"a", "b"}[:s.Feeds] }

func stripNS(name string) string { return "p-" + name }

// stripAddress is a strip's on the BMCs' network.
func stripAddress(name string) string { return fmt.Sprintf("10.78.0.%d", 251+int(name[0]-'a')) }

func (s *spec) stripDir(name string) string    { return s.file("strips", name) }
func (s *spec) stripCgroup(name string) cgroup { return s.cgroup("strip-" + name) }

func (s *spec) newFeeds() (feeds []Feed) {
	for _, name := range s.feedNames() {
		feeds = append(feeds, Feed{Name: name, Strip: stripAddress(name), Program: s.binary()})
	}
	return feeds
}

// An outlet that is off has the one file, one whose relay is stuck the other.
func (c chassis) outletOff(feed string) string {
	return filepath.Join(c.spec.stripDir(feed), c.host+".off")
}

func (c chassis) outletStuck(feed string) string {
	return filepath.Join(c.spec.stripDir(feed), c.host+".stuck")
}

func isThere(file string) (bool, error) {
	_, err := os.Lstat(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (c chassis) outlet(feed string) (on bool, err error) {
	off, err := isThere(c.outletOff(feed))
	return !off && err == nil, err
}

// powered says whether any of the feeds has power; a host without feeds always
// has.
func (c chassis) powered(feeds []string) (bool, error) {
	for _, f := range feeds {
		if on, err := c.outlet(f); on || err != nil {
			return on, err
		}
	}
	return c.spec.Feeds == 0, nil
}

// switchOutlet does what a relay does. An outlet says off only when all that hangs
// on it is dead: what a supply holds over is much less than this takes. It returns
// the processes that it started.
func (c chassis) switchOutlet(ctx context.Context, feed string, on bool) ([]*daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if stuck, err := isThere(c.outletStuck(feed)); stuck || err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(c.spec.feedNames(), func(f string) bool { return f == feed })
	lives := len(others) > 0
	if lives {
		if lives, err = c.powered(others); err != nil {
			return nil, err
		}
	}
	was, err := c.outlet(feed)
	if was == on || err != nil {
		return nil, err
	}
	if !on {
		if !lives {
			err = errors.Join(c.spec.bmcOff(ctx, c.host, true), c.offLocked(ctx))
		}
		if err != nil {
			return nil, err
		}
		return nil, touch(c.outletOff(feed))
	}
	if err := os.Remove(c.outletOff(feed)); err != nil || lives {
		return nil, err
	}
	return c.powerReturns(ctx)
}

// powerReturns starts the BMC and boots the host.
func (c chassis) powerReturns(ctx context.Context) (started []*daemon, err error) {
	h, err := c.spec.host(c.host)
	if err != nil {
		return nil, err
	}
	bmc, bmcErr := c.spec.bmcOn(ctx, h)
	host, hostErr := c.onLocked(ctx)
	for _, d := range []*daemon{bmc, host} {
		if d != nil {
			started = append(started, d)
		}
	}
	return started, errors.Join(bmcErr, hostErr)
}

// startStrips starts the lab's power strips and waits until they answer.
func (l *Lab) startStrips(ctx context.Context) error {
	s := l.spec
	for _, name := range s.feedNames() {
		log := s.file("log", "strip-"+name+".log")
		d, err := startDaemon(log, s.netnsPath(stripNS(name)), s.stripCgroup(name), s.binary(), childStrip, s.Dir, name)
		if err != nil {
			return fmt.Errorf("start power strip %s: %w", name, err)
		}
		l.adopt(d)
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = poll(ctx, 5*time.Millisecond, func() (bool, error) {
			if !d.alive() {
				return false, errors.New(lastLines(log))
			}
			conn, err := dialIn(ctx, s.netnsPath(stripNS(name)), "tcp", net.JoinHostPort(stripAddress(name), stripPort))
			if err != nil {
				return false, nil
			}
			return true, conn.Close()
		})
		cancel()
		if err != nil {
			return fmt.Errorf("wait for power strip %s: %w", name, err)
		}
	}
	return nil
}

// runStrip is the child that is a power strip.
func runStrip(dir, name string) error {
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(stripAddress(name), stripPort))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer conn.Close() //nolint:errcheck // the answer is written or it is not
			_ = conn.SetDeadline(time.Now().Add(stripTime))
			line, err := bufio.NewReader(io.LimitReader(conn, 256)).ReadString('\n')
			if err != nil {
				return // somebody only looked whether we are there
			}
			answer, err := s.stripAnswers(name, strings.Fields(line))
			if err != nil {
				answer = "error: " + err.Error()
				fmt.Fprintf(os.Stderr, "%s %q: %v\n", time.Now().Format(time.StampMilli), line, err)
			}
			_, _ = fmt.Fprintln(conn, answer)
		}()
	}
}

// stripAnswers does what a strip is told: a word and a host.
func (s *spec) stripAnswers(name string, words []string) (answer string, err error) {
	if len(words) != 2 {
		return "", errors.New("want a word and an outlet")
	}
	h, err := s.host(words[1])
	if err != nil {
		return "", err
	}
	c := chassis{spec: s, host: h.Name}
	switch words[0] {
	case "status":
		on, err := c.outlet(name)
		return map[bool]string{true: "on", false: "off"}[on], err
	case "on", "off":
		if err := c.noteIn(c.outletLog(), words[0]+" "+name); err != nil {
			return "", err
		}
		started, err := c.switchOutlet(context.Background(), name, words[0] == "on")
		for _, d := range started {
			go d.wait() // ends with the host, at the latest with the strip
		}
		return "done", err
	default:
		return "", fmt.Errorf("unknown word %q", words[0])
	}
}

// runOutlet is the program by which a host switches an outlet or reads it.
func runOutlet(address, word, outlet string) (code int, err error) {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(address, stripPort), 5*time.Second)
	if err != nil {
		return 1, err
	}
	defer conn.Close() //nolint:errcheck // nothing to lose after the answer
	_ = conn.SetDeadline(time.Now().Add(stripTime))
	if _, err := fmt.Fprintf(conn, "%s %s\n", word, outlet); err != nil {
		return 1, err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return 1, fmt.Errorf("read answer: %w", err)
	}
	switch answer = strings.TrimSpace(answer); {
	case word == "status" && answer == "on":
		return OutletOn, nil
	case word == "status" && answer == "off":
		return OutletOff, nil
	case word != "status" && answer == "done":
		return 0, nil
	}
	return 1, errors.New(answer)
}

// HangStrip stops a power strip's firmware: it takes connections and answers none.
func (l *Lab) HangStrip(ctx context.Context, name string) error {
	l.Mark("strip " + name + " hung")
	return l.spec.stripCgroup(name).freeze(ctx)
}

// HealStrip ends [Lab.HangStrip].
func (l *Lab) HealStrip(name string) error {
	l.Mark("strip " + name + " healed")
	return l.spec.stripCgroup(name).thaw()
}

// SwitchOutlet is a hand at the power strip: the commands that came to the strip
// do not show it.
func (h *Host) SwitchOutlet(ctx context.Context, feed string, on bool) error {
	h.mark(fmt.Sprintf("outlet %s %v", feed, on))
	started, err := h.chassis().switchOutlet(ctx, feed, on)
	for _, d := range started {
		h.lab.adopt(d)
	}
	return err
}

// OutletIsOn is what the strip says of the host's outlet.
func (h *Host) OutletIsOn(feed string) (bool, error) { return h.chassis().outlet(feed) }

// StickOutlet welds the relay of the host's outlet, or frees it: the strip takes
// commands and says that they are done, and the outlet stays as it is.
func (h *Host) StickOutlet(feed string, stuck bool) error {
	h.mark(fmt.Sprintf("outlet %s stuck %v", feed, stuck))
	if stuck {
		return touch(h.chassis().outletStuck(feed))
	}
	return os.RemoveAll(h.chassis().outletStuck(feed))
}

func (c chassis) outletLog() string { return filepath.Join(c.spec.hostDir(c.host), "outlets.log") }

// OutletCommands are the commands that came to the power strips for this host so
// far, oldest first, such as "off a".
func (h *Host) OutletCommands() ([]PowerCommand, error) {
	return readCommands(h.chassis().outletLog())
}
