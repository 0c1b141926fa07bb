package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
)

// passwordVariable is the environment variable with the SASL password or token, so
// that it is on no command line.
const passwordVariable = "MILLRACE_SASL_PASSWORD"

// A connection holds the flags that say how to reach a cluster.
type connection struct {
	brokers      string
	tls          bool
	ca           string
	cert, key    string
	mechanism    string
	user         string
	passwordFile string
}

// flags adds the flags of a connection to those of a command.
func (c *connection) flags(fs *flag.FlagSet) {
	fs.StringVar(&c.brokers, "brokers", "", "`addresses` of the Kafka cluster, host:port with commas between them; required")
	fs.BoolVar(&c.tls, "tls", false, "encrypt the connections; implied by -tls-ca and -tls-cert")
	fs.StringVar(&c.ca, "tls-ca", "", "`file` of the authorities in PEM that the brokers' certificates come from (default: the system's)")
	fs.StringVar(&c.cert, "tls-cert", "", "`file` of the client's certificate in PEM; needs -tls-key")
	fs.StringVar(&c.key, "tls-key", "", "`file` of the client's key in PEM")
	fs.StringVar(&c.mechanism, "sasl", "", "SASL `mechanism`: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; the password or token is taken from "+passwordVariable+" or -sasl-password-file")
	fs.StringVar(&c.user, "sasl-user", "", "SASL user `name`")
	fs.StringVar(&c.passwordFile, "sasl-password-file", "", "`file` with the SASL password or token; it is read for every new connection")
}

// config returns what the flags say, or everything that is wrong with them.
func (c *connection) config() (kafka.Config, error) {
	cfg := kafka.Config{ClientID: "millrace-cli"}
	for addr := range strings.SplitSeq(c.brokers, ",") {
		if addr = strings.TrimSpace(addr); addr != "" {
			cfg.Brokers = append(cfg.Brokers, addr)
		}
	}
	var errs []error
	if len(cfg.Brokers) == 0 {
		errs = append(errs, errors.New("-brokers: name the Kafka cluster, host:port"))
	}
	if err := c.encrypt(&cfg); err != nil {
		errs = append(errs, err)
	}
	if c.mechanism != "" {
		cfg.SASL = &kafka.SASL{Mechanism: strings.ToUpper(c.mechanism), Credentials: c.credentials}
		if _, err := c.credentials(context.Background()); err != nil {
			errs = append(errs, err)
		}
	} else if c.user != "" || c.passwordFile != "" {
		errs = append(errs, errors.New("-sasl-user and -sasl-password-file need -sasl"))
	}
	if len(errs) == 0 {
		errs = cfg.Validate()
	}
	if len(errs) > 0 {
		return kafka.Config{}, usageError{errors.Join(errs...)}
	}
	return cfg, nil
}

// encrypt sets the configuration of TLS.
func (c *connection) encrypt(cfg *kafka.Config) error {
	if !c.tls && c.ca == "" && c.cert == "" && c.key == "" {
		return nil
	}
	cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return fmt.Errorf("-tls-ca: %w", err)
		}
		cfg.TLS.RootCAs = x509.NewCertPool()
		if !cfg.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("-tls-ca %s: it holds no certificate in PEM", c.ca)
		}
	}
	if c.cert == "" && c.key == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("-tls-cert and -tls-key: %w", err)
	}
	cfg.TLS.Certificates = []tls.Certificate{pair}
	return nil
}

// credentials reads the password anew, since tokens change.
func (c *connection) credentials(context.Context) (kafka.Credentials, error) {
	password := os.Getenv(passwordVariable)
	if c.passwordFile != "" {
		data, err := os.ReadFile(c.passwordFile)
		if err != nil {
			return kafka.Credentials{}, fmt.Errorf("-sasl-password-file: %w", err)
		}
		password = strings.TrimSpace(string(data))
	}
	if password == "" {
		return kafka.Credentials{}, fmt.Errorf("-sasl: no password; set %s or -sasl-password-file", passwordVariable)
	}
	return kafka.Credentials{User: c.user, Password: kafka.NewSecret(password)}, nil
}

// reach waits until a broker answers.
func reach(ctx context.Context, client *kgo.Client, brokers []string) error {
	ping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := client.Ping(ping); err != nil {
		return fmt.Errorf("no broker answers at %v: %w; check the address, that the broker runs, and the -tls and -sasl flags", brokers, err)
	}
	return nil
}
