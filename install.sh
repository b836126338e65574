#!/bin/sh
# Builds docker-cache from this checkout, or takes it from a release, and makes it known to docker. `./install.sh --help`
# tells the rest.
set -eu

usage() {
    cat <<'TEXT'
Usage:  ./install.sh [OPTIONS]

Install the docker-cache plugin, built from this checkout or from a release, so that 'docker cache' works

Options:
      --system           Install for all users, in /usr/local/lib/docker/cli-plugins
                         (default: for you, in ${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins)
      --from RELEASE     Take it from a release instead of building it: a folder, a file or an https URL of
                         docker-cache-OS-ARCH.tar.gz with SHA256SUMS beside it
      --uninstall        Remove it from there
      --dry-run          Tell what would be done, and do nothing
      --profile PROFILE  Profile of cargo to build with (default: release)
      --help             Print usage

Examples:
  ./install.sh
  ./install.sh --system
  ./install.sh --from ~/Downloads
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

system=no uninstall=no dry_run=no profile=release from=
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
        --from)
            [ -n "${2:-}" ] || refuse "flag needs an argument: --from"
            from=$2
            shift
            ;;
        --from=?*) from=${1#*=} ;;
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

# Where `man docker-cache` looks, if this user has a home.
man=/usr/local/share/man/man1
[ $system = yes ] || man=${XDG_DATA_HOME:-${HOME:+$HOME/.local/share}}/man/man1

elevate=
if ! writable "$folder"; then
    if [ $system = no ] || ! command -v sudo >/dev/null; then
        fail "you may not write in $folder" "run it as a user who may"
    fi
    elevate="sudo "
fi

# Removes the helpers for engines of other platforms, but not those of a version.
remove_helpers() {
    for helper in "$folder"/cache-helper-*-linux-*; do
        case ${helper##*/} in
            cache-helper-"$1"-linux-*) ;;
            *) [ ! -e "$helper" ] || run rm -f "$helper" ;;
        esac
    done
}

if [ $uninstall = yes ]; then
    remove_helpers ""
    for page in "$man"/docker-cache.1 "$man"/docker-cache-*.1; do
        [ ! -e "$page" ] || run rm -f "$page"
    done
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
if [ -z "$from" ]; then
    needs cargo "it builds the plugin" cargo
    needs cc "cargo links with it" compiler
fi
needs docker "this is a plugin of it" docker
[ $missing = 0 ] || exit 1
if ! docker buildx version >/dev/null 2>&1; then
    say "WARNING: docker has no buildx; layers can be cleaned without it, but not exported or imported"
    say "hint: $(how_to_get buildx)"
fi
if [ $system = no ] && [ -n "${SUDO_USER:-}" ]; then
    say "WARNING: this installs for root alone; without sudo it installs for you, with --system for all"
fi

# Prints this machine as the names of archives have it.
platform() {
    os=$(uname -s | tr '[:upper:]' '[:lower:]')
    case $(uname -m) in
        x86_64) echo "$os-amd64" ;;
        aarch64) echo "$os-arm64" ;;
        *) echo "$os-$(uname -m)" ;;
    esac
}

# Puts a file of the release into a folder of ours.
fetch() {
    case $release in
        http://127.0.0.1[:/]* | http://localhost[:/]* | https://*)
            if command -v curl >/dev/null; then
                curl --fail --silent --show-error --location --proto-redir '=https' --output "$2" "$release/$1"
            elif command -v wget >/dev/null; then
                wget -q -O "$2" "$release/$1"
            else
                fail "there is neither \`curl\` nor \`wget\`" "download the release yourself: ./install.sh --from FOLDER"
            fi
            ;;
        # Whoever could change the archive on its way could change the checksums as well.
        http://*) fail "a release over plain HTTP can be changed on its way" "use https" ;;
        *) cp "$release/$1" "$2" ;;
    esac || fail "cannot get $1 from $release" "a release has docker-cache-OS-ARCH.tar.gz and SHA256SUMS side by side"
}

sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum <"$1"
    else
        shasum -a 256 <"$1"
    fi
}

# Unpacks the archive for this machine into a folder of ours, if it is what SHA256SUMS says and holds what it should.
take_release() {
    archive=docker-cache-$(platform).tar.gz release=${from%/}
    case $from in
        *.tar.gz)
            [ "${from##*/}" = "$archive" ] || fail "${from##*/} is not for this machine: it needs $archive"
            case $from in
                */*) release=${from%/*} ;;
                *) release=. ;;
            esac
            ;;
    esac
    fetch SHA256SUMS "$1/SHA256SUMS"
    expected=$(sed -n "s/^\([0-9a-f]\{64\}\) [ *]$archive\$/\1/p" "$1/SHA256SUMS")
    [ -n "$expected" ] || fail "SHA256SUMS of $release has no $archive" "build it here: ./install.sh"
    fetch "$archive" "$1/$archive"
    found=$(sha256 "$1/$archive")
    [ "${found%% *}" = "$expected" ] ||
        fail "$archive is damaged: its SHA-256 is ${found%% *} and not $expected" "download it again"
    mkdir "$1/new"
    tar -tzf "$1/$archive" >"$1/names"
    tar -tvzf "$1/$archive" >"$1/types"
    while IFS= read -r name; do
        case $name in
            */*) fail "$archive holds $name, which no release does" ;;
            docker-cache | LICENSE | THIRD-PARTY-LICENSES | cache-helper-*-linux-*) ;;
            *) fail "$archive holds $name, which no release does" ;;
        esac
    done <"$1/names"
    ! grep -v '^-' "$1/types" >/dev/null || fail "$archive holds something else than files"
    tar -xzf "$1/$archive" -C "$1/new"
    built=$1/new/docker-cache
}

mine=
clean() {
    [ -z "$mine" ] || rm -rf "$mine"
    [ ! -e "$beside" ] || run rm -f "$beside"
}
# Docker would take a name that begins with docker- for a plugin.
beside=$folder/.new-docker-cache.$$
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

checkout=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -n "$from" ]; then
    mine=$(mktemp -d)
    take_release "$mine"
elif [ $dry_run = yes ]; then
    say "would run: cargo build --profile $profile --locked (in $checkout)"
    built=docker-cache
else
    # The program works in empty containers. Some distributions keep the static C library apart, or all of it.
    if [ "$(uname -s)" = Linux ]; then
        mine=$(mktemp -d)
        printf '#include <stdlib.h>\nint main(void) { return 0; }\n' >"$mine/main.c"
        cc -static -o "$mine/main" "$mine/main.c" 2>/dev/null ||
            fail "\`cc\` cannot make a static program" "$(how_to_get compiler)"
    fi
    say "Building in $checkout (the first time takes some minutes)"
    messages=$(cd "$checkout" && cargo build --profile "$profile" --locked --bin docker-cache --message-format json-render-diagnostics)
    built=$(printf '%s\n' "$messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [ -x "$built" ] || fail "cargo built no docker-cache"
fi
version=
if [ $dry_run = no ]; then
    # A binary that does not answer must not take the place of one that does.
    version=$("$built" docker-cli-plugin-metadata | sed -n 's/.*"Version": "v\([^"]*\)".*/\1/p')
    [ -n "$version" ] || fail "the new docker-cache does not run here"
fi

# Puts a file in the place of another in one step.
put() {
    run cp "$1" "$beside"
    run chmod 0755 "$beside"
    run mv -f "$beside" "$2"
}
run mkdir -p "$folder"
# Each version has helpers of its own, so those of the old one stay whole until the plugin is replaced.
if [ -n "$from" ]; then
    for helper in "$mine"/new/cache-helper-*; do
        [ ! -e "$helper" ] || put "$helper" "$folder/${helper##*/}"
    done
fi
put "$built" "$plugin"
if [ "$man" != /man/man1 ]; then
    run "$plugin" man "$man" || say "WARNING: no manual pages; \`docker cache --help\` says the same"
fi
[ $dry_run = no ] || exit 0
remove_helpers "$version"

# A docker that does not take the plugin may answer by itself, with success.
answer=$(docker cache --version) || answer=
if [ "${answer#docker-cache }" = "$answer" ]; then
    fail "$plugin is there, but \`docker cache --version\` fails" "\`docker info\` says why docker does not take it"
fi
say "Installed $answer as $plugin"
if [ -z "$from" ] && [ "$(uname -s)" != Linux ]; then
    say "WARNING: volumes and cache mounts are on the engine's Linux, for which a build here has no helper"
    say "hint: a release has them: ./install.sh --from RELEASE"
fi
if [ $system = yes ] && [ -e "${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins/docker-cache" ]; then
    say "WARNING: your own copy in ${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins goes before this one"
    say "hint: ./install.sh --uninstall"
fi
