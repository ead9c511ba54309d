package redfishtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	rootPath     = "/redfish/v1"
	systemsPath  = rootPath + "/Systems"
	systemPath   = systemsPath + "/1"
	resetPath    = systemPath + "/Actions/ComputerSystem.Reset"
	infoPath     = systemPath + "/ResetActionInfo"
	chassisPath  = rootPath + "/Chassis/1"
	sessionsPath = rootPath + "/SessionService/Sessions"
	accountsPath = rootPath + "/AccountService/Accounts"
	rolesPath    = rootPath + "/AccountService/Roles"
	taskPath     = rootPath + "/TaskService/Tasks/1"
	bodyMax      = 64 << 10
)

type object = map[string]any

// call is one request under way.
type call struct {
	s    *Service
	w    http.ResponseWriter
	r    *http.Request
	path string // without a slash at the end
	f    Faults
	role Role
	user string
}

func (s *Service) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	f := s.faults
	busy := f.Starting
	if f.Busy > 0 {
		s.faults.Busy--
		busy = true
	}
	s.mu.Unlock()
	c := &call{s: s, w: w, r: r, path: strings.TrimSuffix(r.URL.Path, "/"), f: f}
	w.Header().Set("OData-Version", "4.0")
	w.Header().Set("Cache-Control", "no-cache")
	switch {
	case f.Dead:
		select {
		case <-s.done:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case f.Delay > 0 && !s.pause(f.Delay):
		panic(http.ErrAbortHandler)
	case busy:
		c.busy()
	case c.proper():
		c.route()
	}
}

func (s *Service) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.done:
		return false
	}
}

func (c *call) busy() {
	if c.f.RetryAfter != "" {
		c.w.Header().Set("Retry-After", c.f.RetryAfter)
	}
	status := c.f.BusyStatus
	if status == 0 {
		status = http.StatusServiceUnavailable
	}
	c.fail(status, "Base.1.8.ServiceTemporarilyUnavailable")
}

// proper refuses what no client may send (DSP0266 §6 and §8).
func (c *call) proper() bool {
	h := c.r.Header
	switch {
	case h.Get("OData-Version") != "" && h.Get("OData-Version") != "4.0":
		c.improper(http.StatusPreconditionFailed, "Base.1.8.HeaderInvalid")
	case h.Get("Accept") != "" && !strings.Contains(h.Get("Accept"), "application/json") && !strings.Contains(h.Get("Accept"), "*/*"):
		c.improper(http.StatusNotAcceptable, "Base.1.8.HeaderInvalid")
	case h.Get("X-Auth-Token") != "" && h.Get("Authorization") != "":
		c.improper(http.StatusBadRequest, "Base.1.8.HeaderInvalid")
	case c.r.URL.RawQuery != "":
		c.improper(http.StatusBadRequest, "Base.1.8.QueryParameterUnsupported")
	case (c.r.Method == http.MethodPost || c.r.Method == http.MethodPatch) && !strings.HasPrefix(h.Get("Content-Type"), "application/json"):
		c.improper(http.StatusUnsupportedMediaType, "Base.1.8.HeaderInvalid")
	case !c.s.cfg.Plain && c.r.TLS == nil:
		c.improper(http.StatusForbidden, "Base.1.8.AccessDenied")
	case c.s.cfg.Slash && !strings.HasSuffix(c.r.URL.Path, "/"):
		c.w.Header().Set("Location", c.r.URL.Path+"/")
		c.w.WriteHeader(http.StatusPermanentRedirect)
	default:
		return true
	}
	return false
}

// route serves the service root and the login to everybody, the rest to users.
func (c *call) route() {
	switch {
	case c.path == "/redfish" && c.r.Method == http.MethodGet:
		c.send(http.StatusOK, object{"v1": rootPath + "/"})
		return
	case c.path == rootPath && c.r.Method == http.MethodGet:
		c.send(http.StatusOK, object{
			"@odata.id": rootPath, "@odata.type": "#ServiceRoot.v1_9_0.ServiceRoot", "Id": "RootService", "Name": "Root", "RedfishVersion": "1.11.0",
			"Systems": ref(systemsPath), "Links": object{"Sessions": ref(sessionsPath)},
		})
		return
	case c.path == sessionsPath && c.r.Method == http.MethodPost && !c.s.cfg.NoSessions:
		c.login()
		return
	case !c.known():
		return
	}
	id, isSession := strings.CutPrefix(c.path, sessionsPath+"/")
	switch {
	case c.path == systemsPath:
		c.only(http.MethodGet, c.systems)
	case c.path == systemPath:
		c.either(c.system, c.change)
	case c.path == resetPath:
		c.only(http.MethodPost, c.reset)
	case c.path == infoPath && c.s.cfg.ActionInfo:
		c.only(http.MethodGet, func() {
			c.send(http.StatusOK, object{
				"@odata.id": infoPath, "@odata.type": "#ActionInfo.v1_1_2.ActionInfo", "Id": "ResetActionInfo", "Name": "Reset Action Info",
				"Parameters": []object{{"Name": "ResetType", "Required": true, "DataType": "String", "AllowableValues": c.s.cfg.ResetTypes}},
			})
		})
	case c.path == chassisPath:
		c.either(c.chassis, c.change)
	case c.s.cfg.HideAccounts:
		c.other(id, isSession)
	case c.path == accountsPath:
		c.only(http.MethodGet, c.accounts)
	case strings.HasPrefix(c.path, accountsPath+"/"):
		c.only(http.MethodGet, func() { c.account(strings.TrimPrefix(c.path, accountsPath+"/")) })
	case strings.HasPrefix(c.path, rolesPath+"/"):
		c.only(http.MethodGet, func() { c.roleOf(strings.TrimPrefix(c.path, rolesPath+"/")) })
	default:
		c.other(id, isSession)
	}
}

// other serves sessions and further systems.
func (c *call) other(id string, isSession bool) {
	switch {
	case isSession && !c.s.cfg.NoSessions:
		c.only(http.MethodDelete, func() { c.logout(id) })
	case slices.ContainsFunc(c.s.cfg.Others, func(o string) bool { return c.path == systemsPath+"/"+o }):
		c.only(http.MethodGet, func() {
			c.send(http.StatusOK, object{"@odata.id": c.path, "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem", "Id": "other", "Name": "Other", "PowerState": "On"})
		})
	default:
		c.fail(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
	}
}

func (c *call) only(method string, do func()) {
	if c.r.Method != method {
		c.w.Header().Set("Allow", method)
		c.improper(http.StatusMethodNotAllowed, "Base.1.8.OperationNotAllowed")
		return
	}
	do()
}

func (c *call) either(get, patch func()) {
	if c.r.Method == http.MethodPatch {
		patch()
		return
	}
	c.only(http.MethodGet, get)
}

func ref(path string) object { return object{"@odata.id": path} }

// known finds the user of a request, by token or by password.
func (c *call) known() bool {
	s := c.s
	s.mu.Lock()
	token := c.r.Header.Get("X-Auth-Token")
	for _, ses := range s.sessions {
		if token != "" && ses.token == token {
			c.user = ses.user
		}
	}
	s.mu.Unlock()
	name, password, basic := c.r.BasicAuth()
	for _, a := range s.cfg.Accounts {
		if a.Name == c.user || basic && token == "" && a.Name == name && a.Password == password {
			c.user, c.role = a.Name, a.Role
			return true
		}
	}
	if !c.s.cfg.NoSessions || !basic {
		c.w.Header().Set("WWW-Authenticate", `Basic realm="redfish"`)
	}
	c.fail(http.StatusUnauthorized, "Base.1.8.NoValidSession")
	return false
}

// login opens a session.
func (c *call) login() {
	var q struct{ UserName, Password *string }
	if !c.read(&q) {
		return
	}
	if q.UserName == nil || q.Password == nil {
		c.improper(http.StatusBadRequest, "Base.1.8.PropertyMissing")
		return
	}
	i := slices.IndexFunc(c.s.cfg.Accounts, func(a Account) bool { return a.Name == *q.UserName && a.Password == *q.Password })
	if i < 0 {
		// As real boards do, it quotes what it was sent.
		c.failWith(http.StatusUnauthorized, "Base.1.8.ResourceAtUriUnauthorized", "While accessing the resource with the password "+*q.Password+", the service received an authorization error.")
		return
	}
	s := c.s
	s.mu.Lock()
	id, token := strconv.Itoa(s.logins+1), newToken()
	full := c.f.SessionsFull != 0 || len(s.sessions) >= s.cfg.SessionsMax
	if !full {
		s.logins++
		if !c.f.Forget {
			s.sessions[id] = session{token, *q.UserName}
		}
	}
	s.mu.Unlock()
	if full {
		status := c.f.SessionsFull
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		c.fail(status, "Base.1.8.SessionLimitExceeded")
		return
	}
	c.w.Header().Set("X-Auth-Token", token)
	c.w.Header().Set("Location", s.cfg.Base+sessionsPath+"/"+id)
	c.send(http.StatusCreated, object{"@odata.id": sessionsPath + "/" + id, "@odata.type": "#Session.v1_3_0.Session", "Id": id, "Name": "User Session", "UserName": *q.UserName})
}

func (c *call) logout(id string) {
	c.s.mu.Lock()
	ses, ok := c.s.sessions[id]
	if ok && ses.user == c.user {
		delete(c.s.sessions, id)
	}
	c.s.mu.Unlock()
	if !ok {
		c.fail(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
		return
	}
	c.w.WriteHeader(http.StatusNoContent)
}

func (c *call) systems() {
	members := []object{ref(systemPath)}
	for _, o := range c.s.cfg.Others {
		members = append(members, ref(systemsPath+"/"+o))
	}
	c.send(http.StatusOK, object{
		"@odata.id": systemsPath, "@odata.type": "#ComputerSystemCollection.ComputerSystemCollection", "Name": "Computer System Collection",
		"Members@odata.count": len(members), "Members": members,
	})
}

// state is the power state that is told. It needs the lock.
func (s *Service) state() any {
	f, since := s.faults, time.Since(s.changed)
	word := map[bool]string{true: "On", false: "Off"}
	switch {
	case f.State == "null":
		return nil
	case f.State != "":
		return f.State
	case s.changed.IsZero():
	case since < f.Lag:
		return word[s.was]
	case since < f.Lag+f.Transition:
		return map[bool]string{true: "PoweringOn", false: "PoweringOff"}[s.on]
	}
	return word[s.on]
}

func (s *Service) tag() string { return fmt.Sprintf(`W/"%d"`, s.etag) }

func (c *call) system() {
	if c.f.Redirect != "" {
		c.w.Header().Set("Location", c.f.Redirect)
		c.w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	s := c.s
	action := object{"target": resetPath}
	switch {
	case s.cfg.HideResetTypes:
	case s.cfg.ActionInfo:
		action["@Redfish.ActionInfo"] = infoPath
	default:
		action["ResetType@Redfish.AllowableValues"] = s.cfg.ResetTypes
	}
	body := object{
		"@odata.id": systemPath, "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem", "Id": "1", "Name": "System", "SystemType": "Physical",
		"Status": object{"State": "Enabled", "Health": "OK"}, "Actions": object{"#ComputerSystem.Reset": action},
		"Links": object{"Chassis": []object{ref(chassisPath)}},
	}
	s.mu.Lock()
	if s.uuid != "" {
		body["UUID"] = s.uuid
	}
	body["PowerState"] = s.state()
	tag := s.tag()
	body["@odata.etag"] = tag
	switch s.cfg.Light {
	case LightLocation:
		body["LocationIndicatorActive"] = s.lit != "Off"
	case LightLED, LightLit:
		body["IndicatorLED"] = s.lit
	case LightChassis, LightNone:
	}
	s.mu.Unlock()
	c.w.Header().Set("ETag", tag)
	c.sendSystem(body)
}

// sendSystem sends the system, or what its faults make of it.
func (c *call) sendSystem(body object) {
	data, _ := json.Marshal(body) // maps and texts
	switch {
	case c.f.Huge:
		data = append(bytes.TrimSuffix(data, []byte("}")), `,"Description":"`+strings.Repeat("x", 2<<20)+`"}`...)
	case c.f.Truncated:
		data = data[:len(data)/2]
	case c.f.Rewrite != nil:
		data = c.f.Rewrite(data)
	}
	c.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if c.f.Broken {
		data = data[:len(data)/2]
	}
	_, _ = c.w.Write(data)
}

func (c *call) chassis() {
	s := c.s
	body := object{
		"@odata.id": chassisPath, "@odata.type": "#Chassis.v1_15_0.Chassis", "Id": "1", "Name": "Chassis", "ChassisType": "RackMount",
		"PowerState": "On", // of the chassis: it says nothing about the system
	}
	s.mu.Lock()
	tag := s.tag()
	if s.cfg.Light == LightChassis {
		body["LocationIndicatorActive"] = s.lit != "Off"
	}
	s.mu.Unlock()
	c.w.Header().Set("ETag", tag)
	c.send(http.StatusOK, body)
}

// change is a PATCH of a light.
func (c *call) change() {
	s := c.s
	var q struct {
		IndicatorLED            *string
		LocationIndicatorActive *bool
	}
	if !c.may() || !c.read(&q) {
		return
	}
	onSystem := c.path == systemPath
	location := s.cfg.Light == LightLocation && onSystem || s.cfg.Light == LightChassis && !onSystem
	led := (s.cfg.Light == LightLED || s.cfg.Light == LightLit) && onSystem
	s.mu.Lock()
	tag := s.tag()
	s.mu.Unlock()
	match := c.r.Header.Get("If-Match")
	switch {
	case q.IndicatorLED == nil && q.LocationIndicatorActive == nil:
		c.improper(http.StatusBadRequest, "Base.1.8.NoOperation")
	case q.IndicatorLED != nil && !led || q.LocationIndicatorActive != nil && !location:
		c.improper(http.StatusBadRequest, "Base.1.8.PropertyUnknown")
	case q.IndicatorLED != nil && (!slices.Contains([]string{"Lit", "Blinking", "Off"}, *q.IndicatorLED) || s.cfg.Light == LightLit && *q.IndicatorLED == "Blinking"):
		c.fail(http.StatusBadRequest, "Base.1.8.PropertyValueNotInList")
	case match == "" && s.cfg.WantMatch:
		c.fail(http.StatusPreconditionRequired, "Base.1.8.PreconditionRequired")
	case match != "" && (match != "*" || s.cfg.WantMatch) && match != tag:
		c.fail(http.StatusPreconditionFailed, "Base.1.8.PreconditionFailed")
	default:
		lit := "Lit"
		if q.IndicatorLED != nil {
			lit = *q.IndicatorLED
		} else if !*q.LocationIndicatorActive {
			lit = "Off"
		}
		s.mu.Lock()
		s.lit = lit
		s.etag++
		s.commands = append(s.commands, "light "+lit)
		s.mu.Unlock()
		if s.cfg.OnIdentify != nil && lit != "Off" {
			s.cfg.OnIdentify()
		}
		c.w.WriteHeader(http.StatusNoContent)
	}
}

// may refuses a change by a user who may only read.
func (c *call) may() bool {
	if c.role == Operator || c.role == Administrator {
		return true
	}
	c.fail(http.StatusForbidden, "Base.1.8.InsufficientPrivilege")
	return false
}

// reset is the action ComputerSystem.Reset.
func (c *call) reset() {
	var q struct{ ResetType *string }
	if !c.may() || !c.read(&q) {
		return
	}
	switch {
	case q.ResetType == nil:
		c.improper(http.StatusBadRequest, "Base.1.8.ActionParameterMissing")
		return
	case !slices.Contains(c.s.cfg.ResetTypes, *q.ResetType):
		c.improper(http.StatusBadRequest, "Base.1.8.ActionParameterNotSupported")
		return
	}
	s := c.s
	s.mu.Lock()
	s.commands = append(s.commands, *q.ResetType)
	off := *q.ResetType == "ForceOff"
	on := *q.ResetType == "On" || *q.ResetType == "ForceOn"
	refused := off && !s.on && c.f.RejectOff != 0
	ignored := s.faults.Ignore > 0
	if ignored {
		s.faults.Ignore--
	}
	change := !refused && !ignored && (off && s.on || on && !s.on)
	s.mu.Unlock()
	if refused {
		id := c.f.RejectAs
		if id == "" {
			id = "Base.1.8.ActionNotSupported"
		}
		c.fail(c.f.RejectOff, id)
		return
	}
	if change {
		if s.cfg.OnPower != nil {
			if err := s.cfg.OnPower(on); err != nil {
				c.fail(http.StatusInternalServerError, "Base.1.8.InternalError")
				return
			}
		}
		s.SetPower(on)
	}
	switch {
	case c.f.LoseReply:
		panic(http.ErrAbortHandler)
	case c.f.Async:
		state := c.f.TaskState
		if state == "" {
			state = "Running"
		}
		c.w.Header().Set("Location", taskPath)
		c.send(http.StatusAccepted, object{"@odata.id": taskPath, "@odata.type": "#Task.v1_5_0.Task", "Id": "1", "Name": "Reset", "TaskState": state, "TaskStatus": "OK"})
	default:
		c.w.WriteHeader(http.StatusNoContent)
	}
}

// read takes the body, and nothing that the schema does not have.
func (c *call) read(into any) bool {
	d := json.NewDecoder(io.LimitReader(c.r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		id := "Base.1.8.MalformedJSON"
		if strings.Contains(err.Error(), "unknown field") {
			id = "Base.1.8.PropertyUnknown"
		}
		c.improper(http.StatusBadRequest, id)
		return false
	}
	return true
}

func (c *call) send(status int, body object) {
	data, _ := json.Marshal(body) // maps and texts
	c.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(data)
}

// improper refuses, and remembers that the client is not as the standard wants it.
func (c *call) improper(status int, id string) {
	c.s.mu.Lock()
	c.s.violations = append(c.s.violations, fmt.Sprintf("%s %s: %d %s", c.r.Method, c.r.URL.Path, status, id))
	c.s.mu.Unlock()
	c.fail(status, id)
}

func (c *call) fail(status int, id string) { c.failWith(status, id, "The request failed.") }

func (c *call) failWith(status int, id, text string) {
	c.send(status, object{"error": object{
		"code": "Base.1.8.GeneralError", "message": "A general error has occurred. See ExtendedInfo.",
		"@Message.ExtendedInfo": []object{{"@odata.type": "#Message.v1_1_1.Message", "MessageId": id, "Message": text, "Severity": "Critical", "Resolution": "None."}},
	}})
}
