#!/bin/sh
# Builds docker-cache from this checkout and makes it known to docker. `./install.sh --help` tells the rest.
set -eu

usage() {
    cat <<'TEXT'
Usage:  ./install.sh [OPTIONS]

Build the docker-cache plugin from this checkout and install it, so that 'docker cache' works

Options:
      --system           Install for all users, in /usr/local/lib/docker/cli-plugins
                         (default: for you, in ${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins)
      --uninstall        Remove it from there
      --dry-run          Tell what would be done, and do nothing
      --profile PROFILE  Profile of cargo to build with (default: release)
      --help             Print usage

Examples:
  ./install.sh
  ./install.sh --system
  ./install.sh --uninstall
TEXT
}

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "ERROR: $1"
    shift
    for hint in "$@"; do
        say "hint: $hint"
    done
    exit 1
}

refuse() {
    say "$1"
    say ""
    say "Usage:  ./install.sh [OPTIONS]"
    say ""
    say "Run './install.sh --help' for more information"
    exit 125
}

# Prints the command that installs the packages of a kind on this platform.
how_to_get() {
    platform=$(uname -s)
    if [ "$platform" = Linux ] && [ -r /etc/os-release ]; then
        # shellcheck source=/dev/null
        platform=$(. /etc/os-release && printf '%s %s' "${ID:-}" "${ID_LIKE:-}")
    fi
    case "$1 $platform" in
        cargo\ *) echo "install Rust: see https://rustup.rs, then open a new shell (a distribution's own cargo is often too old)" ;;
        compiler\ *debian* | compiler\ *ubuntu*) echo "sudo apt-get install gcc libc6-dev" ;;
        compiler\ *fedora* | compiler\ *rhel*) echo "sudo dnf install gcc glibc-devel glibc-static" ;;
        compiler\ *suse*) echo "sudo zypper install gcc glibc-devel-static" ;;
        compiler\ *alpine*) echo "sudo apk add gcc musl-dev" ;;
        compiler\ *arch*) echo "sudo pacman -S gcc" ;;
        compiler\ Darwin) echo "xcode-select --install" ;;
        compiler\ *) echo "install a C compiler that is called cc" ;;
        docker\ Darwin) echo "install Docker Desktop, or the docker CLI: brew install docker" ;;
        docker\ *debian* | docker\ *ubuntu*) echo "sudo apt-get install docker.io, or see https://docs.docker.com/engine/install" ;;
        docker\ *) echo "see https://docs.docker.com/engine/install" ;;
        buildx\ Darwin) echo "brew install docker-buildx" ;;
        buildx\ *debian* | buildx\ *ubuntu*) echo "sudo apt-get install docker-buildx, or docker-buildx-plugin from Docker's own packages" ;;
        buildx\ *) echo "install the package docker-buildx-plugin, or see https://docs.docker.com/build/install-buildx" ;;
    esac
}

# Runs a command, as root if the folder of the plugins belongs to root.
run() {
    if [ "$dry_run" = yes ]; then
        say "would run: $elevate$*"
    elif [ -n "$elevate" ]; then
        sudo "$@"
    else
        "$@"
    fi
}

# Says whether this user may write in a folder that may not exist yet.
writable() {
    existing=$1
    while [ ! -e "$existing" ]; do
        existing=$(dirname "$existing")
    done
    [ -w "$existing" ]
}

system=no uninstall=no dry_run=no profile=release
while [ $# -gt 0 ]; do
    case $1 in
        --system) system=yes ;;
        --uninstall) uninstall=yes ;;
        --dry-run) dry_run=yes ;;
        --profile)
            [ $# -gt 1 ] || refuse "flag needs an argument: --profile"
            profile=$2
            shift
            ;;
        --profile=*) profile=${1#*=} ;;
        --help | -h)
            usage
            exit 0
            ;;
        -*) refuse "unknown flag: $1" ;;
        *) refuse "'./install.sh' accepts no arguments" ;;
    esac
    shift
done

if [ $system = yes ]; then
    folder=/usr/local/lib/docker/cli-plugins
elif [ -n "${DOCKER_CONFIG:-}" ]; then
    folder=$DOCKER_CONFIG/cli-plugins
elif [ -n "${HOME:-}" ]; then
    folder=$HOME/.docker/cli-plugins
else
    fail "neither DOCKER_CONFIG nor HOME is set" "name the folder of docker's configuration: DOCKER_CONFIG=FOLDER ./install.sh"
fi
# The build starts in the checkout; a relative DOCKER_CONFIG is meant from here.
case $folder in
    /*) ;;
    *) folder=$PWD/$folder ;;
esac
plugin=$folder/docker-cache

elevate=
if ! writable "$folder"; then
    if [ $system = no ] || ! command -v sudo >/dev/null; then
        fail "you may not write in $folder" "run it as a user who may"
    fi
    elevate="sudo "
fi

if [ $uninstall = yes ]; then
    if [ -e "$plugin" ] || [ -L "$plugin" ]; then
        run rm -f "$plugin"
        [ $dry_run = yes ] || say "removed $plugin"
    else
        say "there is no $plugin"
    fi
    exit 0
fi

missing=0
needs() {
    command -v "$1" >/dev/null && return
    say "ERROR: there is no \`$1\`: $2"
    say "hint: $(how_to_get "$3")"
    missing=$((missing + 1))
}
needs cargo "it builds the plugin" cargo
needs cc "cargo links with it" compiler
needs docker "this is a plugin of it" docker
[ $missing = 0 ] || exit 1
if ! docker buildx version >/dev/null 2>&1; then
    say "WARNING: docker has no buildx; layers can be cleaned without it, but not exported or imported"
    say "hint: $(how_to_get buildx)"
fi
if [ $system = no ] && [ -n "${SUDO_USER:-}" ]; then
    say "WARNING: this installs for root alone; without sudo it installs for you, with --system for all"
fi

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ $dry_run = yes ]; then
    say "would run: cargo build --profile $profile --locked (in $checkout)"
    built=docker-cache
else
    say "Building in $checkout (the first time takes some minutes)"
    messages=$(cd "$checkout" && cargo build --profile "$profile" --locked --bin docker-cache --message-format json-render-diagnostics)
    built=$(printf '%s\n' "$messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [ -x "$built" ] || fail "cargo built no docker-cache"
    # A binary that does not answer must not take the place of one that does.
    "$built" docker-cli-plugin-metadata >/dev/null || fail "the new docker-cache does not run here"
fi

# Docker would take a name that begins with docker- for a plugin.
beside=$folder/.new-docker-cache.$$
trap 'run rm -f "$beside" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ $dry_run = no ] || trap - EXIT
run mkdir -p "$folder"
run cp "$built" "$beside"
run chmod 0755 "$beside"
run mv -f "$beside" "$plugin"
trap - EXIT
[ $dry_run = no ] || exit 0

if ! version=$(docker cache --version); then
    fail "$plugin is there, but \`docker cache --version\` fails" "\`docker info\` says why docker does not take it"
fi
say "Installed $version as $plugin"
if [ $system = yes ] && [ -e "${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins/docker-cache" ]; then
    say "WARNING: your own copy in ${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins goes before this one"
    say "hint: ./install.sh --uninstall"
fi
