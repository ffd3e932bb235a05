#!/bin/sh
# Make the passwords of the team server, each once: docker/secrets/ belongs to its maker, what exists is left as it is.
#
#   docker/secrets.sh              make what is missing
#   docker/secrets.sh user NAME    add a login to the proxy, or give it a new password (asked for, or from standard input)
#   docker/secrets.sh remove NAME  take a login away
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

password() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# Containers run as other users than the host's: each file may be read, but on the host nobody else enters its folder.
keep() {
    cat > "secrets/.$1.new"
    chmod 444 "secrets/.$1.new"
    mv -f "secrets/.$1.new" "secrets/$1"
}

# Compose mounts the file that it found at the start, so the proxy's list is changed in place.
keep_users() {
    touch secrets/proxy_users
    chmod 644 secrets/proxy_users
    cat > secrets/proxy_users
    chmod 444 secrets/proxy_users
}

without() {
    [ ! -f secrets/proxy_users ] || awk -F: -v name="$1" '$1 != name' secrets/proxy_users
}

check_name() {
    case "$1" in
        '' | *[!A-Za-z0-9_.@-]*) echo "a login is made of letters, digits and _ . @ -, but got '$1'" >&2; exit 2 ;;
    esac
}

add_user() {
    check_name "$1"
    hash=$(openssl passwd -6 -stdin)
    others=$(without "$1")
    { [ -z "$others" ] || printf '%s\n' "$others"; printf '%s:%s\n' "$1" "$hash"; } | keep_users
}

case "${1:-}" in
    '')
        for name in postgres_password storage_password mlflow_password dashboard_password; do
            [ -f "secrets/$name" ] || password | keep "$name"
        done
        if [ ! -f secrets/proxy_users ]; then
            [ -f secrets/admin_password ] || password | keep admin_password
            add_user admin < secrets/admin_password
            echo "made the login admin; its password is in docker/secrets/admin_password"
        fi
        ;;
    user)
        check_name "${2:-}"
        if [ -t 0 ]; then
            printf 'password for %s: ' "$2" >&2
            stty -echo; IFS= read -r word; stty echo; echo >&2
        else
            IFS= read -r word
        fi
        [ "${#word}" -ge 8 ] || { echo "a password has at least 8 characters" >&2; exit 2; }
        printf '%s' "$word" | add_user "$2"
        ;;
    remove)
        check_name "${2:-}"
        others=$(without "$2")
        { [ -z "$others" ] || printf '%s\n' "$others"; } | keep_users
        ;;
    *)
        sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
