package config

// exampleToml has every key of every table, as an operator would write a large configuration.
const exampleToml = `
[node]
name = "simd"
home = "/var/lib/simd"
root = "cosmovisor"
args = ["start"]
env  = { }
stop_signal  = "SIGTERM"
stop_timeout = "60s"
restart = "on-failure"
backoff = "1s"
backoff_max = "1m"
backoff_reset = "10m"
backoff_limit = 0
hold = "exit"
[version."v0.10"]
args = []
env  = { }

[upgrade]
plan_file = "data/upgrade-info.json"
restart_after  = true
delay = "0s"
poll  = "300ms"
allow_download = false
on_failure     = "hold"
probe = ["version"]
recase = true
pre_upgrade_max_retries = 0
custom_pre_upgrade = ""

[upgrade.probation]
up = "30s"
height_above_plan = true
attempts = 3

[height]
url  = ""
path = ""
body = ""
grpc = "localhost:9090"
log  = ""

[snapshot]
dir  = ""
skip = false
on   = ["upgrade", "halt"]
method = "auto"
keep = 2
min_free = "10%"
pg_bin = ""

[[snapshot.source]]
name = "data"
kind = "dir"
path = "data"
exclude = []
never_restore_older = ["priv_validator_state.json"]
POSTGRES
[genesis]
kind = ""
version = ""
from = ""
source = ""
binary = ""
migrate = ""
export = []
command = []
timeout = "1h"
on   = ["halt"]
set  = { }

[control]
socket = ""
group  = ""

[log]
format = "auto"
level  = "info"

[metrics]
listen = ""

[notify]
command = []
webhook = ""

[systemd]
ready = "started"
node_notify = false

[[unit]]
name = "price-feeder.service"
at = "before-stop"
action = "stop"

[security]
allow_writable = []
`

// postgresToml is a source of the other kind.
const postgresToml = `
[[snapshot.source]]
name  = "kwild"
kind  = "postgres"
dsn   = "host=/var/run/postgresql dbname=kwild user=kwild"
mode  = "auto"
fallback = "dump"
admin_dsn = ""
scratch_dsn = ""
disconnect = []
keep_clones = 1
free_space = ""
after = ["data"]
`
