// Package web is the page that people look at. Its files are part of the binary.
package web

import (
	"embed"
	"net/http"
)

//go:embed static
var files embed.FS

// Handler serves the page at / and its files below /web/.
func Handler() http.Handler {
	static := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.URL.Path == "/" {
			http.ServeFileFS(w, r, files, "static/index.html")
			return
		}
		http.StripPrefix("/web", static).ServeHTTP(w, r)
	})
}
