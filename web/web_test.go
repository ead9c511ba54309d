package web_test

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/web"
)

func get(t *testing.T, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	web.Handler().ServeHTTP(w, r)
	return w
}

func TestPaths(t *testing.T) {
	tests := []struct {
		name, method, path string
		want               int
		kind               string
	}{
		{"page", "GET", "/", 200, "text/html; charset=utf-8"},
		{"page by name", "GET", "/web/index.html", 200, "text/html; charset=utf-8"},
		{"script", "GET", "/web/app.js", 200, "text/javascript; charset=utf-8"},
		{"style", "GET", "/web/style.css", 200, "text/css; charset=utf-8"},
		{"icon", "HEAD", "/web/icon.svg", 200, "image/svg+xml"},
		{"no listing", "GET", "/web/", 404, ""},
		{"no listing without a slash", "GET", "/web", 404, ""},
		{"no listing below", "GET", "/web/static/", 404, ""},
		{"no way up", "GET", "/web/../web.go", 404, ""},
		{"no such file", "GET", "/web/nothing", 404, ""},
		{"writes", "POST", "/", 405, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := get(t, tt.method, tt.path)
			if w.Code != tt.want || tt.kind != "" && w.Header().Get("Content-Type") != tt.kind {
				t.Errorf("%s %s: %d %s, want %d %s", tt.method, tt.path, w.Code, w.Header().Get("Content-Type"), tt.want, tt.kind)
			}
			if tt.want == 200 && tt.method == "GET" && w.Body.Len() < 100 {
				t.Errorf("%s is %d bytes", tt.path, w.Body.Len())
			}
		})
	}
}

// The policy lets nothing in from elsewhere and nothing inline, and the page
// keeps to it.
func TestContentSecurityPolicy(t *testing.T) {
	w := get(t, http.MethodGet, "/")
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("policy %q lacks %q", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") || strings.Contains(policy, "http") {
		t.Errorf("policy %q lets something in", policy)
	}
	if got := w.Header().Get("X-Content-Type-Options"); got != "nosniff" {
		t.Errorf("X-Content-Type-Options is %q", got)
	}
	page := w.Body.String()
	for what, pattern := range map[string]string{
		"an inline script":   `<script(?:\s+[^>]*)?>[^<]`,
		"an inline style":    `<style|\sstyle=`,
		"an inline handler":  `\son[a-z]+=`,
		"an address outside": `(?:href|src)="(?:[a-z]+:)?//`,
	} {
		if found := regexp.MustCompile(pattern).FindString(page); found != "" {
			t.Errorf("the page has %s: %s", what, found)
		}
	}
	for _, ref := range regexp.MustCompile(`(?:href|src)="([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if w := get(t, http.MethodGet, ref[1]); w.Code != http.StatusOK {
			t.Errorf("the page refers to %s, which is answered %d", ref[1], w.Code)
		}
	}
}

// What comes from the API is put into the page as text only: a VM's name is
// chosen by its user.
func TestScriptMakesNoMarkup(t *testing.T) {
	script := get(t, http.MethodGet, "/web/app.js").Body.String()
	for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", ".style", "srcdoc", "javascript:"} {
		if strings.Contains(script, word) {
			t.Errorf("the script uses %s", word)
		}
	}
	if !strings.Contains(script, "createTextNode") {
		t.Error("the script makes no text: this test looks at the wrong file")
	}
}

func TestUnchangedFilesAreNotSentAgain(t *testing.T) {
	tag := get(t, http.MethodGet, "/web/app.js").Header().Get("ETag")
	if tag == "" {
		t.Fatal("no ETag")
	}
	if w := get(t, http.MethodGet, "/web/app.js", "If-None-Match", tag); w.Code != http.StatusNotModified || w.Body.Len() > 0 {
		t.Errorf("asked again: %d with %d bytes, want %d", w.Code, w.Body.Len(), http.StatusNotModified)
	}
	if w := get(t, http.MethodGet, "/web/style.css", "If-None-Match", tag); w.Code != http.StatusOK {
		t.Errorf("another file with that tag: %d, want %d", w.Code, http.StatusOK)
	}
}

// The hosts' watchdogs are shown, with all that the API tells of them.
func TestPageShowsWatchdogs(t *testing.T) {
	script := get(t, http.MethodGet, "/web/app.js").Body.String()
	host, _ := reflect.TypeFor[client.Host]().FieldByName("Watchdog")
	if name := "host." + jsonName(host); !strings.Contains(script, "watchdogNote("+name+")") {
		t.Errorf("the hosts' table does not show %s", name)
	}
	_, note, _ := strings.Cut(script, "function watchdogNote(w)")
	note, _, _ = strings.Cut(note, "\nfunction ")
	for f := range reflect.TypeFor[client.HostWatchdog]().Fields() {
		if !strings.Contains(note, "w."+jsonName(f)) {
			t.Errorf("the page does not show a watchdog's %s", jsonName(f))
		}
	}
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
