// Package client speaks Haven's HTTPS API: from agent to agent over mutual TLS,
// and from the operator's command line over mutual TLS or the local socket.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/haven-ha/haven"
)

// Client calls one agent at a time. It keeps connections.
type Client struct {
	http *http.Client
	base func(haven.HostID) string
}

// New makes a client over a transport that connects by host name.
func New(rt http.RoundTripper) *Client {
	return &Client{
		http: &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		base: func(host haven.HostID) string { return "https://" + string(host) },
	}
}

// NewAt makes a client whose every call goes to one place, such as the local
// socket; the transport knows where that is.
func NewAt(rt http.RoundTripper, base string) *Client {
	c := New(rt)
	c.base = func(haven.HostID) string { return base }
	return c
}

// Error is an agent's answer that is not a success.
type Error struct {
	Problem
}

func (e *Error) Error() string {
	s := e.Title
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Master != "" {
		s += " (master is " + string(e.Master) + ")"
	}
	return s
}

// Is makes errors.Is work for the errors of the root package.
func (e *Error) Is(target error) bool {
	switch target {
	case haven.ErrNotMaster:
		return e.Status == http.StatusMisdirectedRequest
	case haven.ErrNotFound:
		return e.Status == http.StatusNotFound
	case haven.ErrStaleTerm:
		return e.Status == http.StatusPreconditionFailed
	case haven.ErrUnavailable:
		return e.Status == http.StatusServiceUnavailable
	}
	return false
}

// call sends a request and decodes the answer. In and out may be nil.
func (c *Client) call(ctx context.Context, host haven.HostID, method, path string, in, out any, limit int64) error {
	return c.callFor(ctx, host, method, path, "", in, out, limit)
}

// HeaderOnBehalf carries the operator for whom a host passes a request on, as
// "name;role".
const HeaderOnBehalf = "Haven-On-Behalf-Of"

// PostFor passes an operator's act on to the master, in the operator's name.
func (c *Client) PostFor(ctx context.Context, host haven.HostID, path, by, role string, in, out any) error {
	return c.callFor(ctx, host, http.MethodPost, path, by+";"+role, in, out, MaxAnswerBytes)
}

func (c *Client) callFor(ctx context.Context, host haven.HostID, method, path, behalf string, in, out any, limit int64) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base(host)+path, body)
	if err != nil {
		return fmt.Errorf("make request %s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if behalf != "" {
		req.Header.Set(HeaderOnBehalf, behalf)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s at %s: %w", method, path, host, unwrapURL(err))
	}
	defer func() { _ = resp.Body.Close() }() // it is read to its end below
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return fmt.Errorf("read answer of %s at %s: %w", path, host, err)
	}
	if int64(len(data)) > limit {
		return fmt.Errorf("read answer of %s at %s: longer than %d bytes", path, host, limit)
	}
	if resp.StatusCode/100 != 2 {
		e := &Error{}
		if json.Unmarshal(data, &e.Problem) != nil || e.Title == "" {
			e.Title = http.StatusText(resp.StatusCode)
		}
		e.Status = resp.StatusCode
		return fmt.Errorf("%s %s at %s: %w", method, path, host, e)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decode answer of %s at %s: %w", path, host, err)
	}
	return nil
}

// unwrapURL drops the method and URL that net/http puts before an error.
func unwrapURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// Get reads any resource into out.
func (c *Client) Get(ctx context.Context, host haven.HostID, path string, out any) error {
	return c.call(ctx, host, http.MethodGet, path, nil, out, MaxAnswerBytes)
}

// Post sends an operator's act.
func (c *Client) Post(ctx context.Context, host haven.HostID, path string, in, out any) error {
	return c.call(ctx, host, http.MethodPost, path, in, out, MaxAnswerBytes)
}

// Hello asks an agent who it is.
func (c *Client) Hello(ctx context.Context, host haven.HostID) (Hello, error) {
	var h Hello
	return h, c.call(ctx, host, http.MethodGet, PathHello, nil, &h, MaxSmallBytes)
}

// Report tells the master about this host.
func (c *Client) Report(ctx context.Context, master haven.HostID, r *Report) (Ack, error) {
	var a Ack
	return a, c.call(ctx, master, http.MethodPost, PathReport, r, &a, MaxReportBytes)
}

// Inventory asks an agent for an inventory that it takes now.
func (c *Client) Inventory(ctx context.Context, host haven.HostID) (haven.Inventory, error) {
	var inv haven.Inventory
	return inv, c.call(ctx, host, http.MethodGet, PathInventory, nil, &inv, MaxInventoryBytes)
}

// Definition asks an agent for a VM's definition.
func (c *Client) Definition(ctx context.Context, host haven.HostID, vm haven.VMID) (DefinitionAnswer, error) {
	var d DefinitionAnswer
	return d, c.call(ctx, host, http.MethodGet, "/v1/agent/vms/"+string(vm)+"/definition", nil, &d, MaxOrderBytes)
}

// Order gives an agent an order, or asks how it stands.
func (c *Client) Order(ctx context.Context, host haven.HostID, o haven.Order, xml []byte) (haven.OrderReport, error) {
	var r haven.OrderReport
	return r, c.call(ctx, host, http.MethodPost, PathOrders, OrderRequest{o, xml}, &r, MaxSmallBytes)
}

// Probe asks a neighbour to look for a suspect.
func (c *Client) Probe(ctx context.Context, neighbour haven.HostID, q ProbeRequest) (ProbeAnswer, error) {
	var a ProbeAnswer
	return a, c.call(ctx, neighbour, http.MethodPost, PathProbe, q, &a, MaxSmallBytes)
}

// Confirm asks the master whether an order stands.
func (c *Client) Confirm(ctx context.Context, master haven.HostID, q ConfirmRequest) (ConfirmAnswer, error) {
	var a ConfirmAnswer
	return a, c.call(ctx, master, http.MethodPost, PathConfirm, q, &a, MaxSmallBytes)
}

// Promise asks an agent to take part in no other founding of the cluster.
func (c *Client) Promise(ctx context.Context, host haven.HostID, q PromiseRequest) (PromiseAnswer, error) {
	var a PromiseAnswer
	return a, c.call(ctx, host, http.MethodPost, PathPromise, q, &a, MaxSmallBytes)
}
