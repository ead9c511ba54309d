package flight

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/haven-ha/haven"
)

// job is something for the disk to do.
type job struct {
	do    int
	name  string
	data  []byte
	steps int
}

// What a job does.
const (
	doOpen = iota
	doWrite
	doEnd
)

// writer does everything that may hang. It has a goroutine to itself.
type writer struct {
	r     *Recorder
	disk  Disk
	log   *slog.Logger
	files map[string]*openFile
}

type openFile struct {
	file File
	size int64 // of what was written whole
	lost Lost
	bad  bool // what was written in part cannot be taken back
}

func (w *writer) run() {
	if err := w.adopt(); err != nil {
		w.log.Warn("recordings of before could not be looked at", "error", err)
	}
	for j := range w.r.jobs {
		w.do(j)
		w.r.queued.Add(-int64(len(j.data)))
	}
}

// adopt gives recordings that a crash ended their names: they are readable.
func (w *writer) adopt() error {
	all, err := w.disk.List()
	if err != nil {
		return err
	}
	oldestFirst(all)
	var errs []error
	for _, e := range all {
		name, partly := strings.CutSuffix(e.Name, part)
		if !isRecording(e.Name) {
			continue
		}
		if partly {
			errs = append(errs, w.disk.Rename(e.Name, name))
		}
		w.r.found(name)
	}
	return errors.Join(append(errs, w.tidy())...)
}

// incidentOf is the reverse of fileName.
func incidentOf(name string) (haven.IncidentID, bool) {
	parts := strings.Split(strings.TrimSuffix(name, suffix), ".")
	if len(parts) < 3 {
		return "", false
	}
	return haven.IncidentID(strings.Join(parts[:len(parts)-2], ".")), true
}

func (w *writer) do(j job) {
	f := w.files[j.name]
	switch {
	case j.do == doOpen:
		file, err := w.disk.Create(j.name + part)
		if err != nil {
			w.log.Warn("an incident is not recorded", "recording", j.name, "error", err)
			return
		}
		f = &openFile{file: file}
		w.files[j.name] = f
		w.r.found(j.name)
		f.write(w, j)
		w.tidied()
	case f == nil: // It could not be made.
	case j.do == doWrite:
		f.write(w, j)
	case j.do == doEnd:
		f.write(w, j)
		delete(w.files, j.name)
		if err := errors.Join(f.file.Sync(), f.file.Close(), w.disk.Rename(j.name+part, j.name)); err != nil {
			w.log.Warn("a recording was not ended well", "recording", j.name, "error", err)
		}
		w.tidied()
	}
}

// write appends a piece of a file whole, or not at all. What could not be written
// is counted, and the count stands in front of what can be written again.
func (f *openFile) write(w *writer, j job) {
	data := j.data
	if f.lost.Blocks > 0 && !f.bad {
		data = append(pressed(line{Lost: &f.lost}), data...)
	}
	var err error
	if f.bad {
		err = errors.New("the file cannot be mended")
	} else if _, err = f.file.Write(data); err == nil {
		f.size += int64(len(data))
		f.lost = Lost{}
		return
	}
	if f.lost.Blocks == 0 {
		w.log.Warn("a part of an incident is not recorded", "recording", j.name, "error", err)
	}
	f.lost.Blocks++
	f.lost.Steps += j.steps
	f.lost.Why = err.Error()
	if !f.bad {
		f.bad = f.file.Truncate(f.size) != nil
	}
}

// pressed is a member of its own, for one line.
func pressed(l line) []byte {
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	_, _ = fmt.Fprintf(zip, "%s\n", quoted(l)) // a Buffer takes everything
	_ = zip.Close()
	return buf.Bytes()
}

func (w *writer) tidied() {
	if err := w.tidy(); err != nil {
		w.log.Warn("old recordings could not be removed", "error", err)
	}
}

// tidy keeps the bounds of all recordings together. What is being written may
// grow to a quarter of the whole each before it is counted again.
func (w *writer) tidy() error {
	err := tidy(w.disk, w.r.cfg.Keep, w.r.cfg.MaxBytes, func(name string) bool {
		return w.files[strings.TrimSuffix(name, part)] != nil
	})
	all, listErr := w.disk.List()
	if listErr == nil {
		w.r.forget(func(name string) bool {
			return w.files[name] != nil || slices.ContainsFunc(all, func(e Entry) bool { return strings.TrimSuffix(e.Name, part) == name })
		})
	}
	return errors.Join(err, listErr)
}
