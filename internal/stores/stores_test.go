package stores

import (
	"errors"
	"slices"
	"testing"

	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/rados"
)

// Every kind that can be configured is known to every build; what this one cannot
// use says why.
func TestTypes(t *testing.T) {
	paths := map[string]string{storagebeat.TypeBlock: "/dev/null", storagebeat.TypeRados: "pool"}
	for _, kind := range Types() {
		b, err := kind.Open(storagebeat.OpenOptions{Path: paths[kind.Name]})
		switch {
		case slices.Contains(Usable(), kind.Name) && err != nil:
			t.Errorf("%s: %v", kind.Name, err)
		case !slices.Contains(Usable(), kind.Name) && !errors.Is(err, rados.ErrNotBuilt):
			t.Errorf("%s: %v", kind.Name, err)
		case err == nil:
			if err := b.Close(); err != nil {
				t.Errorf("close %s: %v", kind.Name, err)
			}
		}
		delete(paths, kind.Name)
	}
	if len(paths) > 0 {
		t.Errorf("not there: %v", paths)
	}
}
