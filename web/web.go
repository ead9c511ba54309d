// Package web is the page that people look at. Its files are part of the binary.
// It asks the API of whoever serves it, and nobody else.
package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"time"
)

//go:embed static
var embedded embed.FS

// policy lets the page load its own script and style, ask its own server, and
// nothing else: not even what a VM's name may bring with it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// file is one file of the page.
type file struct {
	name, kind, tag string
	body            []byte
}

// Handler serves the page at / and its files at /web/NAME. Whatever else it is
// asked for is not found; there are no directories to list.
func Handler() http.Handler {
	files := map[string]file{}
	for _, f := range load() {
		files["/web/"+f.name] = f
	}
	files["/"] = files["/web/index.html"]
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		f, ok := files[r.URL.Path]
		switch {
		case !ok:
			http.NotFound(w, r)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "the page can only be read", http.StatusMethodNotAllowed)
		default:
			h.Set("Content-Type", f.kind)
			h.Set("Cache-Control", "no-cache") // Ask each time; an unchanged file is not sent again.
			h.Set("ETag", f.tag)
			http.ServeContent(w, r, f.name, time.Time{}, bytes.NewReader(f.body))
		}
	})
}

// load reads the files of the page. They are in the binary, so an error is a
// mistake of the build, and a test finds it.
func load() []file {
	entries, err := fs.ReadDir(embedded, "static")
	if err != nil {
		return nil
	}
	var all []file
	for _, e := range entries {
		body, err := fs.ReadFile(embedded, path.Join("static", e.Name()))
		if err != nil {
			continue
		}
		sum := sha256.Sum256(body)
		all = append(all, file{
			name: e.Name(), kind: kindOf(e.Name()), tag: `"` + hex.EncodeToString(sum[:16]) + `"`, body: body,
		})
	}
	return all
}

// kindOf does not ask the machine's own table of types, which may say anything.
func kindOf(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return "application/octet-stream"
}
