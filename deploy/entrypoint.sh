#!/bin/sh
# Makes what gateway and sidecar share, then runs apicost: a token that both can read, and the folder for
# what workers leave when they stop. Any command of apicost may be given; only `run` prepares.
set -eu
shared=/run/apicost
gateway_user=636 # the stock APISIX image's
if [ "${1:-}" = run ] && [ "$(id -u)" = 0 ]; then
    mkdir -p "$shared/spool"
    chown "$gateway_user:$gateway_user" "$shared/spool"
    chmod 0700 "$shared/spool"
    if [ ! -s "$shared/token" ]; then
        umask 077
        od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' > "$shared/token.new"
        chown "$gateway_user:$gateway_user" "$shared/token.new"
        mv "$shared/token.new" "$shared/token"
    fi
fi
exec /opt/apicost/bin/apicost "$@"
