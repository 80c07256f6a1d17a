package host

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestUnitOfAProcess(t *testing.T) {
	for want, lines := range map[string][]string{
		"simd.service": {"0::/system.slice/simd.service"},
		"old.service":  {"12:pids:/system.slice/other.service", "1:name=systemd:/system.slice/old.service"},
		"":             {"0::/user.slice/user-0.slice/session-3.scope", "0::/", "0::/user.slice/user@1000.service", "junk", ""},
	} {
		assert.Equal(t, want, serviceOf(lines))
	}
}

// Without a run and without --unit, the unit is the one that names the home.
func TestUnitsThatNameTheHome(t *testing.T) {
	shown := "Id=a.service\nEnvironment=DAEMON_HOME=/h DAEMON_NAME=simd\nExecStart={ path=/x ; argv[]=/x/cosmovisor run ; ignore_errors=no ; }\n\n" +
		"Id=b.service\nEnvironment=DAEMON_HOME=/h2\n\n" +
		"Id=c.service\nExecStart={ path=/x ; argv[]=/x/supervisor --home /h run start ; ignore_errors=no ; }\n\n" +
		"Id=d.service\nExecStart={ path=/x ; argv[]=/x/backup /h ; ignore_errors=no ; }\n\n" +
		"Id=e.service\nExecStart={ path=/x ; argv[]=/x/supervisor --config /h/supervisor/supervisor.toml run ; ignore_errors=no ; }\n\n" +
		"Id=nodevisor@f.service\nExecStart={ path=/x ; argv[]=/x/supervisor --config=/etc/nodevisor/f.toml run ; ignore_errors=no ; }\n\n" +
		"Id=g.service\nEnvironment=SUPERVISOR_CONFIG=/etc/nodevisor/f.toml\n"
	assert.Equal(t, []string{"a.service", "c.service", "e.service"}, namingHome(shown, "/h", "/h/supervisor/supervisor.toml"))
	assert.Equal(t, []string{"b.service"}, namingHome(shown, "/h2", ""))
	assert.Empty(t, namingHome("", "/h", ""))
	assert.Equal(t, []string{"nodevisor@f.service", "g.service"}, namingHome(shown, "/var/lib/nodevisor/f", "/etc/nodevisor/f.toml"))
}
