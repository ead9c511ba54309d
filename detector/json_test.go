package detector

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// again writes v as JSON, reads it into a new value, and returns that.
func again[T any](t *testing.T, v T) T {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var w T
	if err := json.Unmarshal(data, &w); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return w
}

// TestJSONLosesNothing guards recordings (P9): configuration, evidence and
// conclusions of random histories come back from JSON as they were.
func TestJSONLosesNothing(t *testing.T) {
	n := uint64(1000)
	if testing.Short() {
		n = 30
	}
	for seed := range n {
		h := newHistory(seed + 9<<40)
		if got := again(t, h.cfg); got != h.cfg {
			t.Fatalf("seed %d: configuration\n got %+v\nwant %+v", seed, got, h.cfg)
		}
		m, err := New(h.cfg)
		if err != nil {
			t.Fatal(err)
		}
		for k := range 25 {
			r := h.next()
			if got := again(t, r.in); !reflect.DeepEqual(got, r.in) {
				t.Fatalf("seed %d step %d: input\n got %+v\nwant %+v", seed, k, got, r.in)
			}
			out := m.Step(r.now, r.in)
			if got := again(t, out); !reflect.DeepEqual(got, out) {
				t.Fatalf("seed %d step %d: output\n got %+v\nwant %+v", seed, k, got, out)
			}
		}
	}
}

// TestJSONHasEverything fills every field there is, so that a new one without a
// form in JSON is found, and checks that no wall clock is among the evidence: a
// clock that is moved cannot be seen by what is not there.
func TestJSONHasEverything(t *testing.T) {
	in := filled[Input](t)
	if got := again(t, in); !reflect.DeepEqual(got, in) {
		t.Errorf("input\n got %+v\nwant %+v", got, in)
	}
	out := filled[Output](t)
	if got := again(t, out); !reflect.DeepEqual(got, out) {
		t.Errorf("output\n got %+v\nwant %+v", got, out)
	}
	cfg := filled[Config](t)
	if got := again(t, cfg); got != cfg {
		t.Errorf("configuration\n got %+v\nwant %+v", got, cfg)
	}
	var s GossipState
	var w Writer
	if json.Unmarshal([]byte(`"gone"`), &s) == nil || json.Unmarshal([]byte(`"nobody"`), &w) == nil {
		t.Error("a word that is none was read")
	}
}

func filled[T any](t *testing.T) T {
	t.Helper()
	var v T
	n := 0
	fill(t, reflect.ValueOf(&v).Elem(), &n)
	return v
}

// fill gives every field below v a value of its own that is not zero.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch v.Interface().(type) {
	case time.Time:
		t.Fatal("a wall clock among the detector's values")
	case haven.Tri, GossipState, Writer:
		v.SetUint(1)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				t.Fatalf("%s.%s is not exported: JSON would lose it", v.Type(), v.Type().Field(i).Name)
			}
			fill(t, v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
		fill(t, v.Index(1), n)
	case reflect.String:
		v.SetString("w" + string(rune('a'+*n%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n) + 1_000_000_007)
	case reflect.Uint64:
		v.SetUint(uint64(*n) + 1<<60)
	case reflect.Float64:
		v.SetFloat(float64(*n) / 3)
	default:
		t.Fatalf("%s: nobody knows how to fill it", v.Type())
	}
}
