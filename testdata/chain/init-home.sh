#!/bin/sh
# Make a home in which one validator is the whole network: blocks four times a second, votes that end after seconds.
#
#   init-home.sh CHAIND HOME [RPC_PORT [P2P_PORT [GRPC_PORT]]]
#
# CHAIND is the binary of v1. The key "validator" lies unencrypted in HOME: this is a network for tests.
set -eu

[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
chaind=$1 home=$2 rpc=${3:-26657} p2p=${4:-26656} grpc=${5:-9090}
chain_id=demo
voting_period=${VOTING_PERIOD:-3s} # the expedited period must be shorter, and is never used

run() { "$chaind" --home "$home" "$@" >/dev/null 2>"$home.init.log" || { cat "$home.init.log" >&2; exit 1; }; }

run init validator --chain-id "$chain_id" --default-denom stake

cat >"$home/config/client.toml" <<EOF
chain-id = "$chain_id"
keyring-backend = "test"
output = "json"
node = "tcp://127.0.0.1:$rpc"
broadcast-mode = "sync"
EOF

sed -i \
	-e 's/"voting_period": "172800s"/"voting_period": "'"$voting_period"'"/' \
	-e 's/"expedited_voting_period": "86400s"/"expedited_voting_period": "1s"/' \
	"$home/config/genesis.json"

run keys add validator
run genesis add-genesis-account validator 1000000000000stake
run genesis gentx validator 500000000000stake --chain-id "$chain_id"
run genesis collect-gentxs

# Everything listens on the loopback alone. The second laddr of config.toml is the peers'.
sed -i \
	-e "s|^laddr = \"tcp://127.0.0.1:26657\"|laddr = \"tcp://127.0.0.1:$rpc\"|" \
	-e "s|^laddr = \"tcp://0.0.0.0:26656\"|laddr = \"tcp://127.0.0.1:$p2p\"|" \
	-e 's|^pprof_laddr = .*|pprof_laddr = ""|' \
	"$home/config/config.toml"
sed -i -e "s|^address = \"localhost:9090\"|address = \"127.0.0.1:$grpc\"|" "$home/config/app.toml"

run genesis validate
rm -f "$home.init.log"
