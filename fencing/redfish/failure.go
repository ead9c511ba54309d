package redfish

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/redact"
)

// errCondition is returned when a change needs an If-Match, or another one.
var errCondition = fmt.Errorf("%w: it wants the version of what is changed", fencing.ErrUnsupported)

// idsMax bounds the message ids that are kept of an answer.
const idsMax = 8

var idForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,80}$`)

// extended is the body of an answer that is an error (DSP0266 §8.6).
type extended struct {
	Error struct {
		Code string    `json:"code"`
		Info []message `json:"@Message.ExtendedInfo"`
	} `json:"error"`
	Info []message `json:"@Message.ExtendedInfo"`
}

type message struct {
	ID string `json:"MessageId"`
}

// messageIDs lists the message ids in a body. The messages' text is not taken: it
// quotes what was sent, passwords too.
func messageIDs(body []byte, secrets ...string) []string {
	var e extended
	if json.Unmarshal(body, &e) != nil {
		return nil
	}
	var ids []string
	for _, m := range append(e.Error.Info, e.Info...) {
		ids = append(ids, m.ID)
	}
	ids = append(ids, e.Error.Code)
	ids = slices.DeleteFunc(ids, func(id string) bool {
		return !idForm.MatchString(id) || redact.Holds(id, secrets...)
	})
	ids = slices.Compact(ids)
	return ids[:min(len(ids), idsMax)]
}

// What messages mean, by the last part of their id, wherever their status code
// does not tell: the standard's own and those of Dell, HPE and others.
var (
	// busyWords: no session to be had, or the board is starting.
	busyWords = []string{
		"SessionLimitExceeded", "CreateLimitReachedForResource", "CreateLimitReached", "RAC0218", "MaxSessionsReached",
		"ServiceTemporarilyUnavailable", "ServiceShuttingDown", "ServiceInUnknownState", "ResourceInStandby", "ResourceInUse",
		"ServerNotReady", "POSTInProgress", "OperationTimeout",
	}
	authWords = []string{
		"UnauthorizedLoginAttempt", "ResourceAtUriUnauthorized",
		"AccessDenied", "AccountForSessionNoLongerExists", "PasswordChangeRequired", "AuthenticationTokenRequired",
	}
	privilegeWords = []string{"InsufficientPrivilege", "InsufficientPrivilegeForOperation", "NoPrivilege"}
	// malformedWords: it does not take such a request in any state.
	malformedWords = []string{
		"ActionParameterNotSupported", "ActionParameterUnknown", "ActionParameterMissing", "ActionParameterValueFormatError",
		"ActionParameterValueNotInList", "ActionParameterValueTypeError", "PropertyValueNotInList", "PropertyNotWritable", "PropertyUnknown",
		"PropertyMissing", "MalformedJSON", "UnrecognizedRequestBody", "QueryNotSupported", "PropertyValueTypeError", "PropertyValueFormatError",
	}
)

func says(ids []string, words []string) bool {
	return slices.ContainsFunc(ids, func(id string) bool {
		return slices.Contains(words, id[strings.LastIndexByte(id, '.')+1:])
	})
}

// failure says what an answer other than a success means. Reset is whether it is
// one to a power command, where a refusal mostly means "off already".
func failure(status int, ids []string, reset, loggedIn bool) error {
	cause := fmt.Errorf("HTTP status %d", status)
	if len(ids) > 0 {
		cause = fmt.Errorf("HTTP status %d, %s", status, strings.Join(ids, ", "))
	}
	kind := fencing.ErrUnsupported
	switch {
	case says(ids, busyWords):
		kind = fencing.ErrBusy
	case says(ids, privilegeWords):
		kind = fencing.ErrPrivilege
	case status == http.StatusUnauthorized && loggedIn:
		// It gave us the session a moment ago: it has lost its sessions since.
		kind = fencing.ErrBusy
	case status == http.StatusForbidden && loggedIn && !says(ids, authWords):
		kind = fencing.ErrPrivilege // who it is was taken a moment ago
	case status == http.StatusUnauthorized, status == http.StatusForbidden, says(ids, authWords):
		kind = fencing.ErrAuth
	case status == http.StatusPreconditionFailed, status == http.StatusPreconditionRequired:
		return fmt.Errorf("%w (%w)", errCondition, cause)
	case status == http.StatusConflict:
		kind = fencing.ErrRejected
	case status == http.StatusBadRequest && reset && !says(ids, malformedWords):
		kind = fencing.ErrRejected
	case status == http.StatusNotImplemented:
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		kind = fencing.ErrBusy
	}
	return fmt.Errorf("%w (%w)", kind, cause)
}

// task looks at an answer that accepts a command for later, or reports its end.
// It is not waited for: whether the host is off is read, not believed.
func (a *answer) task() error {
	var t struct {
		State  string `json:"TaskState"`
		Status string `json:"TaskStatus"`
	}
	if len(a.body) == 0 || json.Unmarshal(a.body, &t) != nil {
		return nil
	}
	if t.Status == "Critical" || slices.Contains([]string{"Exception", "Killed", "Cancelled", "Interrupted"}, t.State) {
		return fmt.Errorf("%w: its task for the command failed", fencing.ErrRejected)
	}
	return nil
}

// decode reads a resource. A body that is none comes from boards that are
// starting, so it is worth another try.
func (a *answer) decode(into any) error {
	err := json.Unmarshal(a.body, into)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("%w: its answer is no JSON (at byte %d of %d)", fencing.ErrBusy, syntax.Offset, len(a.body))
	case errors.As(err, &kind):
		return fmt.Errorf("%w: its answer has another shape than the standard's", fencing.ErrBusy)
	}
	return fmt.Errorf("%w: its answer cannot be read", fencing.ErrBusy)
}
