package pgtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
)

// TCP lets the server listen on 127.0.0.1 too, at a free port, for roles with a password (SCRAM). The socket stays
// trusted.
func TCP() Option {
	return func(s *settings) {
		s.tcp = true
		s.hba = append(s.hba, "local all all trust", "host all all 127.0.0.1/32 scram-sha-256", "local replication all trust")
	}
}

// TLS is TCP through TLS alone, with a certificate for 127.0.0.1 whose authority is in CA().
func TLS() Option {
	return func(s *settings) {
		s.tcp, s.tls = true, true
		s.hba = append(s.hba, "local all all trust", "hostssl all all 127.0.0.1/32 scram-sha-256")
		s.conf = append(s.conf, "ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'")
	}
}

// CA is the file that sslrootcert names for a cluster with TLS.
func (c *Cluster) CA() string { return filepath.Join(c.Dir, "server.crt") }

// TCPDSN is a connection string for a database over TCP, as a role with a password, which isn't in it.
func (c *Cluster) TCPDSN(database, role string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=%s", c.Port, role, database)
}

// startAtFreePort starts a server with that configuration that listens at 127.0.0.1, too. Another process may take a free
// port before the server does: then it is another one's turn.
func (c *Cluster) startAtFreePort(conf []string) {
	c.tb.Helper()
	for try := 1; ; try++ {
		c.Port = c.freePort()
		all := append(slices.Clone(conf), "listen_addresses = '127.0.0.1'", fmt.Sprintf("port = %d", c.Port))
		c.write("data/postgresql.conf", strings.Join(all, "\n")+"\n")
		out, err := c.try("pg_ctl", c.startArgs()...)
		if err == nil {
			return
		}
		require.Less(c.tb, try, 5, "pg_ctl start: %v: %s", err, out)
	}
}

// freePort is one that nobody listens at. It lies below the range that the kernel gives to clients (ip(7),
// ip_local_port_range): no connection takes it before the server does, or while that is stopped.
func (c *Cluster) freePort() int {
	c.tb.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			require.NoError(c.tb, l.Close())
			return port
		}
	}
	require.Fail(c.tb, "no port is free")
	return 0
}

// certify writes a self-signed certificate and its key, which must be the server's alone.
func (c *Cluster) certify() {
	c.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	require.NoError(c.tb, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pgtest"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	require.NoError(c.tb, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(c.tb, err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	c.write("server.crt", text)
	c.write("data/server.crt", text)
	c.write("data/server.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	path := filepath.Join(c.Dir, "data", "server.key")
	c.Own(path)
	require.NoError(c.tb, os.Chmod(path, 0o600))
}

// Own gives a file or directory to the server's user: a tablespace, say.
func (c *Cluster) Own(path string) {
	c.tb.Helper()
	if c.cred != nil {
		require.NoError(c.tb, os.Chown(path, int(c.cred.Credential.Uid), int(c.cred.Credential.Gid)))
	}
}
