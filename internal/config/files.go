package config

import (
	"errors"
	"fmt"
	"io/fs"
)

// CheckFiles looks at the files that the configuration names, as they are on
// this machine. The problems are what would keep the agent from starting.
func (c *Config) CheckFiles() (problems, warnings []Problem) {
	k := newChecker(c, nil)
	for _, f := range c.files() {
		if IsCredential(f.path) {
			k.warn("is a credential that systemd gives to the service; it cannot be looked at from here", "look at the service's log when it starts: it begins only with what it can use", f.keys...)
			continue
		}
		warning, err := f.check()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k.wrong("there is no such file on this machine: "+f.path, "make the file, or correct its name", f.keys...)
		case err != nil:
			k.wrong("cannot be used on this machine: "+err.Error(), "mend the file (secrets and keys want mode 0600), or name another", f.keys...)
		case warning != "":
			k.warn(warning, "chmod 600 "+f.path, f.keys...)
		}
	}
	sortProblems(k.problems)
	sortProblems(k.warnings)
	return k.problems, k.warnings
}

// fileKind says what is expected of a file.
type fileKind int

const (
	public      fileKind = iota // a certificate
	privateKey                  // PEM; refused when others can use it
	secretLine                  // a password on one line
	secretLines                 // keys, one on each line
	mailBody                    // a template
)

// fileUse is one named file.
type fileUse struct {
	path string
	kind fileKind
	keys []string // where it is named, the most telling first
}

func (f fileUse) check() (warning string, err error) {
	switch f.kind {
	case secretLine:
		_, warning, err = LoadSecret(f.path)
		return warning, err
	case secretLines:
		_, warning, err = LoadSecrets(f.path)
		return warning, err
	case mailBody:
		_, err = LoadMailBody(f.path)
		return "", err
	case public, privateKey:
	}
	file, mode, err := openRegular(f.path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }() // opened for reading
	if _, err := file.Read(make([]byte, 1)); err != nil {
		return "", fmt.Errorf("read %s: %w", f.path, err)
	}
	if loose := looseMode(f.path, mode); loose != "" && f.kind == privateKey {
		return "", fmt.Errorf("%w: %s", ErrSecret, loose)
	}
	return "", nil
}

// files lists each named file once.
func (c *Config) files() []fileUse {
	var uses []fileUse
	seen := map[string]bool{}
	add := func(path string, kind fileKind, keys ...string) {
		if path != "" && !seen[path] {
			seen[path] = true
			uses = append(uses, fileUse{path, kind, keys})
		}
	}
	add(c.Gossip.KeyFile, secretLines, "gossip.key_file")
	add(c.API.CAFile, public, "api.ca_file")
	add(c.API.CertFile, public, "api.cert_file")
	add(c.API.KeyFile, privateKey, "api.key_file")
	if !c.Helper.Plain {
		add(c.Helper.CertFile, public, "helper.cert_file")
		add(c.Helper.KeyFile, privateKey, "helper.key_file")
	}
	add(c.Helper.PasswordFile, secretLine, "helper.password_file")
	c.Notify.files(add)
	for _, id := range c.Hypervisors() {
		devices := c.Hosts[id].Fencing.Devices
		for _, n := range sorted(devices) {
			add(devices[n].PasswordFile, secretLine,
				fmt.Sprintf("hosts.%s.fencing.devices.%s.password_file", id, n),
				fmt.Sprintf("fencing.devices.%s.password_file", n))
			add(devices[n].KGFile, secretLine,
				fmt.Sprintf("hosts.%s.fencing.devices.%s.kg_file", id, n),
				fmt.Sprintf("fencing.devices.%s.kg_file", n))
		}
	}
	return uses
}
