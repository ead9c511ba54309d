package ledger

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
)

// Definition is a VM's raw domain XML, compressed. It is never parsed and
// written again: what an operator put there is what is started.
type Definition struct {
	SHA string `json:"sha"` // hex SHA-256 of the XML
	GZ  []byte `json:"gz"`
}

// Pack compresses a definition.
func Pack(xml []byte) (Definition, error) {
	if len(xml) > MaxDefinitionBytes {
		return Definition{}, fmt.Errorf("pack definition: %d bytes, at most %d are kept", len(xml), MaxDefinitionBytes)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(xml); err != nil {
		return Definition{}, fmt.Errorf("pack definition: %w", err)
	}
	if err := w.Close(); err != nil {
		return Definition{}, fmt.Errorf("pack definition: %w", err)
	}
	if b.Len() > MaxPackedBytes {
		return Definition{}, fmt.Errorf("pack definition: %d bytes compressed, at most %d are kept", b.Len(), MaxPackedBytes)
	}
	sum := sha256.Sum256(xml)
	return Definition{SHA: hex.EncodeToString(sum[:]), GZ: b.Bytes()}, nil
}

// Unpack returns the XML, checked against its digest.
func (d Definition) Unpack() ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(d.GZ))
	if err != nil {
		return nil, fmt.Errorf("unpack definition: %w", err)
	}
	xml, err := io.ReadAll(io.LimitReader(r, MaxDefinitionBytes+1))
	if err != nil {
		return nil, fmt.Errorf("unpack definition: %w", err)
	}
	sum := sha256.Sum256(xml)
	if got := hex.EncodeToString(sum[:]); got != d.SHA {
		return nil, fmt.Errorf("unpack definition: digest is %s, recorded is %s", got, d.SHA)
	}
	return xml, nil
}
