package redfish

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/haven-ha/haven/fencing"
)

const (
	accountsPath = root + "/AccountService/Accounts"
	// accountsMax is how many accounts are looked at for our own. Boards have 16 or so.
	accountsMax = 32
	// mayPower is the privilege that the standard's privilege registry wants for
	// ComputerSystem.Reset.
	mayPower = "ConfigureComponents"
)

// account is what is needed of a ManagerAccount.
type account struct {
	UserName string `json:"UserName"`
	Links    struct {
		Role link `json:"Role"`
	} `json:"Links"`
}

// role is what is needed of a Role.
type role struct {
	ID       string   `json:"Id"`
	Assigned []string `json:"AssignedPrivileges"`
	OEM      []string `json:"OemPrivileges"`
}

// weak says whether the role surely does not allow to switch power. One with
// privileges of the maker's own may allow it by one of them.
func (r role) weak() bool {
	return slices.Contains(r.Assigned, "Login") && !slices.Contains(r.Assigned, mayPower) && len(r.OEM) == 0
}

// Examine finds out whether our account may switch power: every account may read
// the state. It looks at the account's role and changes nothing. A board that does
// not show the account or its role says nothing against it.
func (d *Driver) Examine(ctx context.Context) error {
	return d.do(ctx, "read our account's role", func(ctx context.Context, s *session) error {
		r, ok, err := d.ownRole(ctx, s)
		if err != nil || !ok || !r.weak() {
			return err
		}
		return fmt.Errorf("%w: its role %.40q has no %s", fencing.ErrPrivilege, r.ID, mayPower)
	})
}

// ownRole finds our account, and its role.
func (d *Driver) ownRole(ctx context.Context, s *session) (r role, ok bool, err error) {
	var all collection
	if shown, err := s.show(ctx, accountsPath, &all); err != nil || !shown {
		return r, false, err
	}
	for _, m := range all.Members[:min(len(all.Members), accountsMax)] {
		path, err := localPath(m.ID)
		if err != nil {
			continue
		}
		var a account
		if shown, err := s.show(ctx, path, &a); err != nil {
			return r, false, err
		} else if !shown || a.UserName != d.cfg.Username {
			continue
		}
		if path, err = localPath(a.Links.Role.ID); err != nil {
			return r, false, nil
		}
		ok, err = s.show(ctx, path, &r)
		return r, ok, err
	}
	return r, false, nil
}

// show reads a resource, if the board shows it to us. Most boards show an account
// to its own user only, and some have no accounts.
func (s *session) show(ctx context.Context, path string, into any) (bool, error) {
	res, err := s.request(ctx, request{method: "GET", path: path})
	switch {
	case err == nil:
		return res.decode(into) == nil, nil
	case errors.Is(err, fencing.ErrUnreachable), ctx.Err() != nil:
		return false, err
	}
	return false, nil
}
