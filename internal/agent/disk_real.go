package agent

import (
	"fmt"

	"github.com/haven-ha/haven/internal/diskwatch"
	"github.com/haven-ha/haven/vmrestart/libvirt"
)

// realDisks reads libvirt's definitions, and files through this host's mounts.
type realDisks struct{ *diskwatch.Reader }

func (r Real) openDisks(closers *[]func() error) (Disks, error) {
	reader, err := diskwatch.NewReader(r.StoreChild, r.Config.Heartbeat.IOTimeout)
	if err != nil {
		return nil, fmt.Errorf("set up disk activity: %w", err)
	}
	*closers = append(*closers, reader.Close)
	return realDisks{reader}, nil
}

// Written lists the places that a VM may write to.
func (realDisks) Written(xml []byte) ([]diskwatch.Disk, error) {
	id, places, err := libvirt.WrittenBy(xml)
	if err != nil {
		return nil, err
	}
	disks := make([]diskwatch.Disk, 0, len(places))
	for _, p := range places {
		disks = append(disks, diskwatch.Disk{VM: id, Path: p.Path, Layer: p.Layer, Blind: p.Blind})
	}
	return disks, nil
}
