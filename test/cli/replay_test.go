package cli_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/flight"
)

// recording waits until the only incident was recorded for some seconds after its
// end, has the tool replay it from the cluster, stops the cluster and copies the
// recording.
func recording(ts *testscript.TestScript, _ bool, args []string) {
	c := ts.Value(clusterKey{}).(*slot).running
	var path, id string
	ts.Check(c.until("/v1/incidents", func(data []byte) bool {
		var all []client.Incident
		if json.Unmarshal(data, &all) != nil || len(all) != 1 || all[0].Recording == nil {
			return false
		}
		path, id = all[0].Recording.Path, string(all[0].ID)
		return recordedUntil(path + ".part").After(all[0].ClosedAt.Add(8 * time.Second))
	}))
	ts.Check(ts.Exec("haven", "replay", id, "-o", "json"))
	c.Close()
	data, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

// recordedUntil is when the last step was that is in a recording.
func recordedUntil(path string) (last time.Time) {
	data, err := os.ReadFile(path)
	if err != nil {
		return last
	}
	if r, err := flight.NewReader(bytes.NewReader(data)); err == nil {
		_, _ = flight.Replay(r, nil, func(round flight.Round) error { // it is still being written
			last = round.Wall
			return nil
		})
	}
	return last
}

// damage makes a recording that is not as it should be: damage FROM TO HOW.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if args[2] == "half" {
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), data[:len(data)/2], 0o600))
		return
	}
	zip, err := gzip.NewReader(bytes.NewReader(data))
	ts.Check(err)
	text, err := io.ReadAll(zip)
	ts.Check(err)
	lines := strings.SplitAfter(string(text), "\n")
	switch args[2] {
	case "line":
		lines[8] = lines[8][:len(lines[8])/2] + "\n"
	case "verdict":
		for i, l := range lines {
			if l := strings.Replace(l, `"host":"kvm-03","verdict":"dead"`, `"host":"kvm-03","verdict":"failed"`, 1); l != lines[i] && strings.HasPrefix(l, `{"at"`) {
				lines[i] = l
				break
			}
		}
	case "format":
		lines[0] = strings.Replace(lines[0], `"format":1`, `"format":9`, 1)
	default:
		ts.Fatalf("damage %s?", args[2])
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err = w.Write([]byte(strings.Join(lines, "")))
	ts.Check(err)
	ts.Check(w.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), out.Bytes(), 0o600))
}
