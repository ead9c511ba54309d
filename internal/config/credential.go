package config

import (
	"fmt"
	"regexp"
	"strings"
)

// credentialPrefix begins the name of a systemd credential where else the path of
// a file stands. A bare name would do too, but a path that lost its first slash
// would pass for one.
const credentialPrefix = "credential:"

// credentialName is what systemd allows, but for "." and "..".
var credentialName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}$`)

// IsCredential says whether a value is the name of a credential whose directory is
// not known.
func IsCredential(path string) bool { return strings.HasPrefix(path, credentialPrefix) }

// NeedsCredentials returns an error when the configuration names credentials and
// the program was given none, as when it is started by hand.
func (c *Config) NeedsCredentials() error {
	for _, f := range c.files() {
		if IsCredential(f.path) {
			return fmt.Errorf("%s names %s, but systemd gave this program no credentials: LoadCredential= or LoadCredentialEncrypted= in its unit does", f.keys[0], f.path)
		}
	}
	return nil
}
