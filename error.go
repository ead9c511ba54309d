package haven

import "errors"

// Errors that more than one package gives or looks for.
var (
	// ErrNotMaster is returned when something only the master may do was asked
	// of another agent, or of a master that could not verify its leadership.
	ErrNotMaster = errors.New("not the master")
	// ErrStaleTerm is returned when an order or request carries an older term
	// than one that was seen already.
	ErrStaleTerm = errors.New("stale term")
	// ErrNotFound is returned when a named host, VM, incident or order does not exist.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable is returned when a part did not answer within its bound.
	ErrUnavailable = errors.New("unavailable")
)
