package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// SetAside takes the definition of a VM that moved away off this host, so that
// nothing can start it here. First the definition is written to a file in dir,
// flushed to disk; then a managed-save image is renamed, into dir or, when that
// is another file system, beside itself; then the domain is undefined. Nothing
// is deleted, and storage is not touched. A VM that is not defined is success,
// and a call that died half-way may be repeated.
//
// ErrAlreadyRunning is returned for an active VM, which stays as it is. ErrKept
// is returned when undefining would lose something, such as the metadata of
// snapshots; then the definition stays, with its autostart switched off.
func (c *Client) SetAside(ctx context.Context, id haven.VMID, dir string) error {
	const op = "set VM aside"
	sent, err := c.change(ctx, op, func(ctx context.Context, l *lv.Libvirt, send func() bool) error {
		d, err := lookup(l, id)
		if lv.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if active, err := l.DomainIsActive(d); err != nil {
			return err
		} else if active != 0 {
			return &Error{Op: op, Kind: ErrAlreadyRunning}
		}
		xml, err := l.DomainGetXMLDesc(d, definitionFlags)
		if err != nil {
			return err
		}
		if ctx.Err() != nil || !send() {
			return haven.ErrUnavailable
		}
		if err := keepDefinition(dir, d.Name, id, []byte(xml)); err != nil {
			return &Error{Op: op, Kind: ErrKept, Err: err}
		}
		if err := keepSavedImage(c.opts.SaveDir, dir, d.Name, id); err != nil {
			return &Error{Op: op, Kind: ErrKept, Err: errors.Join(err, autostartOff(l, d))}
		}
		return undefine(l, d, []byte(xml))
	})
	return changed(op, sent, err)
}

// undefine removes the definition with the flags that keep everything else.
// libvirt refuses when there are snapshots or checkpoints, whose metadata it
// would drop.
func undefine(l *lv.Libvirt, d lv.Domain, xml []byte) error {
	flags := lv.DomainUndefineKeepNvram
	if p, err := Parse(xml); err != nil || p.tpm {
		flags |= lv.DomainUndefineKeepTpm // Since libvirt 8.9; an older one refuses it.
	}
	err := l.DomainUndefineFlags(d, flags)
	switch {
	case err == nil, lv.IsNotFound(err):
		return nil
	case !fromLibvirt(err):
		return err
	}
	return &Error{Op: "set VM aside", Kind: ErrKept, Err: errors.Join(err, autostartOff(l, d))}
}

func autostartOff(l *lv.Libvirt, d lv.Domain) error {
	if err := l.DomainSetAutostart(d, 0); err != nil {
		return fmt.Errorf("switch off autostart: %w", err)
	}
	return nil
}

// keepDefinition writes a definition to a file of its own in dir. It may hold
// secrets, so only its owner can read it.
func keepDefinition(dir, name string, id haven.VMID, xml []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keep definition: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.xml", fileName(name), id, DefinitionSHA(xml)[:12]))
	if old, err := os.ReadFile(path); err == nil && string(old) == string(xml) {
		return syncDir(dir) // Kept by a call that died half-way.
	}
	f, err := os.CreateTemp(dir, ".definition-*")
	if err != nil {
		return fmt.Errorf("keep definition: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(xml)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("keep definition: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("keep definition: %w", err)
	}
	return syncDir(dir)
}

// keepSavedImage renames the managed-save image of a VM so that libvirt does
// not find it. It never replaces another file. An image can be as large as the
// guest's memory, so it is not copied: across file systems it stays where it
// is, under another name.
func keepSavedImage(saveDir, dir, name string, id haven.VMID) error {
	if strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("set managed-save image aside: the name %q is no file name", name)
	}
	from := filepath.Join(saveDir, name+".save")
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var last error
	for _, base := range []string{
		filepath.Join(dir, fmt.Sprintf("%s-%s.save", fileName(name), id)),
		filepath.Join(saveDir, fmt.Sprintf("%s-%s.set-aside", fileName(name), id)),
	} {
		for n := 1; n <= 100; n++ {
			to := base
			if n > 1 {
				to += "." + strconv.Itoa(n)
			}
			// A hard link is a rename that fails where a rename would replace.
			last = os.Link(from, to)
			if errors.Is(last, fs.ErrExist) {
				continue
			}
			if last != nil {
				break
			}
			if err := syncDir(filepath.Dir(to)); err != nil {
				return err
			}
			if err := os.Remove(from); err != nil {
				return fmt.Errorf("set managed-save image aside: %w", err)
			}
			return syncDir(saveDir)
		}
	}
	return fmt.Errorf("set managed-save image aside: %w", last)
}

// fileName makes a domain's name harmless as a part of a file's name.
func fileName(name string) string {
	out := []byte(name)
	for i, b := range out {
		if b == '/' || b == 0 || (i == 0 && b == '.') {
			out[i] = '_'
		}
	}
	return string(out[:min(len(out), 100)])
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("flush directory: %w", err)
	}
	return nil
}
