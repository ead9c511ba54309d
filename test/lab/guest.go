package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/haven-ha/haven/test/lab/guestos"
)

// GuestConfig says what VM to make.
type GuestConfig struct {
	Name string // a-z, 0-9 and '-'
	UUID string // empty: drawn
	// Slow makes it write once a second instead of nine times, for labs with many.
	Slow bool
	// Thick gives its disk all space at once, as a user who fears a full file
	// system does; without, it takes space as it writes.
	Thick bool
	// Metadata is raw XML for the domain's metadata element.
	Metadata string
}

// Guest is a VM: a disk on the shared storage, with a boot sector that writes a
// journal to it, and a definition that any host can take.
type Guest struct {
	Name string
	UUID string
	XML  string // the definition
	lab  *Lab
}

const guestXML = `<domain type='qemu'>
  <name>%s</name>
  <uuid>%s</uuid>
  <metadata>%s</metadata>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='%s'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
`

var guestPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// NewGuest makes a VM's disk and definition. It is defined nowhere yet.
func (l *Lab) NewGuest(c GuestConfig) (*Guest, error) {
	if !guestPattern.MatchString(c.Name) {
		return nil, fmt.Errorf("guest %q: want a name of %s", c.Name, guestPattern)
	}
	if c.UUID == "" {
		c.UUID = newUUID()
	}
	g := &Guest{Name: c.Name, UUID: c.UUID, lab: l}
	g.XML = fmt.Sprintf(guestXML, c.Name, c.UUID, c.Metadata, g.DiskPath())
	boot := guestos.Fast
	if c.Slow {
		boot = guestos.Slow
	}
	disk, err := os.OpenFile(g.Image(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make disk of %s: %w", c.Name, err)
	}
	_, err = disk.Write(boot)
	if c.Thick && err == nil {
		_, err = disk.Write(make([]byte, guestos.DiskSize-len(boot)))
	}
	if err := errors.Join(err, disk.Truncate(guestos.DiskSize), disk.Close()); err != nil {
		return nil, fmt.Errorf("make disk of %s: %w", c.Name, err)
	}
	if err := errors.Join(os.WriteFile(g.xmlFile(), []byte(g.XML), 0o600), writeJSON(g.stateFile(), g)); err != nil {
		return nil, fmt.Errorf("keep definition of %s: %w", c.Name, err)
	}
	return g, nil
}

// Guest finds a VM that [Lab.NewGuest] made, also in another process.
func (l *Lab) Guest(name string) (*Guest, error) {
	g := &Guest{Name: name, lab: l}
	if err := readJSON(g.stateFile(), g); err != nil {
		return nil, fmt.Errorf("find guest %s: %w", name, err)
	}
	return g, nil
}

// Guests are all VMs of the lab by name.
func (l *Lab) Guests() ([]*Guest, error) {
	files, err := filepath.Glob(filepath.Join(l.spec.guestDir(), "*.json"))
	if err != nil {
		return nil, err
	}
	var all []*Guest
	for _, f := range files {
		g, err := l.Guest(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

func (g *Guest) xmlFile() string   { return filepath.Join(g.lab.spec.guestDir(), g.Name+".xml") }
func (g *Guest) stateFile() string { return filepath.Join(g.lab.spec.guestDir(), g.Name+".json") }

// DiskPath is the VM's disk as hosts see it.
func (g *Guest) DiskPath() string { return filepath.Join(HostStorePath, g.Name+".img") }

// Image is the VM's disk on the shared storage itself, past all faults.
func (g *Guest) Image() string { return filepath.Join(g.lab.spec.export(), g.Name+".img") }

// Define makes the VM known on a host, persistently.
func (g *Guest) Define(ctx context.Context, h *Host) error {
	_, err := h.Virsh(ctx, "define", g.xmlFile())
	return err
}

// Undefine makes a host forget the VM.
func (g *Guest) Undefine(ctx context.Context, h *Host) error {
	_, err := h.Virsh(ctx, "undefine", g.Name)
	return err
}

// Start starts the VM on a host that knows it.
func (g *Guest) Start(ctx context.Context, h *Host) error {
	h.mark(g.Name + " start")
	_, err := h.Virsh(ctx, "start", g.Name)
	return err
}

// Destroy ends the VM on a host at once.
func (g *Guest) Destroy(ctx context.Context, h *Host) error {
	h.mark(g.Name + " destroy")
	_, err := h.Virsh(ctx, "destroy", g.Name)
	return err
}

// State is libvirt's word for the VM on a host, such as "running" or "shut off".
func (g *Guest) State(ctx context.Context, h *Host) (string, error) {
	out, err := h.Virsh(ctx, "domstate", g.Name)
	return strings.TrimSpace(out), err
}

// Header reads what the VM wrote last. It returns [guestos.ErrNeverWrote] as long
// as it has not.
func (g *Guest) Header() (guestos.Header, error) {
	disk, err := os.Open(g.Image())
	if err != nil {
		return guestos.Header{}, err
	}
	defer disk.Close() //nolint:errcheck // opened for reading
	return guestos.ReadHeader(disk)
}

// Journal reads all that the VM wrote.
func (g *Guest) Journal() (guestos.Journal, error) {
	disk, err := os.Open(g.Image())
	if err != nil {
		return guestos.Journal{}, err
	}
	defer disk.Close() //nolint:errcheck // opened for reading
	return guestos.ReadJournal(disk)
}

// Write is a write of a VM and when it was seen, at most some 3 ms after it.
type Write struct {
	guestos.Header
	At time.Time
}

// WaitWrite waits for the first write with a sequence number above after; 0 waits
// for the first of all.
func (g *Guest) WaitWrite(ctx context.Context, after uint32) (Write, error) {
	return g.wait(ctx, func(h guestos.Header) bool { return h.Seq > after })
}

// WaitWriter waits for the first write of another boot than the one that drew
// nonce.
func (g *Guest) WaitWriter(ctx context.Context, nonce uint32) (Write, error) {
	return g.wait(ctx, func(h guestos.Header) bool { return h.Nonce != nonce })
}

func (g *Guest) wait(ctx context.Context, ok func(guestos.Header) bool) (Write, error) {
	disk, err := os.Open(g.Image())
	if err != nil {
		return Write{}, err
	}
	defer disk.Close() //nolint:errcheck // opened for reading
	var w Write
	err = poll(ctx, 2*time.Millisecond, func() (bool, error) {
		h, err := guestos.ReadHeader(disk)
		if errors.Is(err, guestos.ErrNeverWrote) {
			return false, nil
		}
		w = Write{Header: h, At: time.Now()}
		return err == nil && ok(h), err
	})
	if err != nil {
		return w, fmt.Errorf("wait for a write of %s after %d: %w", g.Name, w.Seq, err)
	}
	return w, nil
}
