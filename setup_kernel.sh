#!/bin/bash
# The test ground of criu-detached: a Debian root filesystem with CRIU in it, and a
# kernel >= 7.0 to run it on. "setup_kernel.sh help" tells how to use it.
#
# Everything is kept in .cache/ of the checkout:
#   kernel/<suite>/lib/modules/<version>   the kernel and its modules
#   qemu/                                  QEMU, unpacked: newer than many machines' own
#   vng/                                   a virtual environment with virtme-ng
#   <suite>/root, <suite>/root.img         the root filesystem, as a directory and as an ext4 image
#   <suite>/root-<machine>.img             the root filesystem of another machine, made in the same way
#   <suite>/plugins                        the plugin, built in that root (see the Makefile)
#   installed                              packages that were installed on this machine for it
set -euo pipefail

readonly DEFAULT_SUITE=forky
SUITE=${SUITE:-$DEFAULT_SUITE}
KERNEL_SUITE=${KERNEL_SUITE:-$DEFAULT_SUITE}
MACHINE=${MACHINE:-}
VM_MEMORY=${CRIU_DETACHED_VM_MEMORY:-2G}
VM_TIMEOUT=${CRIU_DETACHED_VM_TIMEOUT:-3600}

# What "run" returns when the VM died or hung, as opposed to a command that failed in it.
readonly VM_LOST=125
# The default kernel has all that the plugin makes use of. A suite that is asked for may have an
# older one, down to what the plugin needs.
if [[ $KERNEL_SUITE == "$DEFAULT_SUITE" ]]; then
    readonly KERNEL_NEEDED=7.0
else
    readonly KERNEL_NEEDED=5.14
fi

readonly ROOT_PACKAGES=(
    criu python3-pycriu
    python3 python3-dev python3-cffi python3-protobuf python3-pytest python3-hypothesis
    python3-setuptools
    protobuf-compiler gcc libc6-dev make git
    kmod iproute2 procps strace util-linux mount
    e2fsprogs btrfs-progs xfsprogs dosfstools squashfs-tools erofs-utils exfatprogs f2fs-tools
    g++ redis-server
    podman runc crun libcriu2 catatonit busybox-static bubblewrap fuse3 squashfuse
    python3-venv
)

# Directories that have to be there in the root: where the checkout is mounted, and where
# CRIU looks for plugins and settings (so that a test can mount over them).
readonly ROOT_DIRECTORIES=(src usr/lib/criu etc/criu)

SOURCE_DIR=$(dirname "$(readlink -f "$0")")
readonly SOURCE_DIR
readonly CACHE=$SOURCE_DIR/.cache
readonly KERNEL_DIR=$CACHE/kernel/$KERNEL_SUITE
readonly QEMU_DIR=$CACHE/qemu
readonly VNG_DIR=$CACHE/vng
readonly SUITE_DIR=$CACHE/$SUITE
readonly ROOT_DIR=$SUITE_DIR/root
readonly ROOT_IMAGE=$SUITE_DIR/root${MACHINE:+-$MACHINE}.img

# Debian keeps qemu, mke2fs and modprobe's like in sbin, which a plain user's PATH lacks.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

usage() {
    cat <<'USAGE'
Usage: ./setup_kernel.sh [COMMAND]

  prepare [PART]     make everything that the commands below need (the default), or a part of
                     it: root (for "native" and "auto") or machine (kernel and QEMU)
  costs PART         say what it takes to make that, if it is not there
  run CMD...         run CMD as root in a VM on a kernel >= 7.0
  native CMD...      run CMD as root on this machine's kernel, in the root filesystem
  auto CMD...        run CMD directly on this machine if it has all that the plugin needs,
                     else as "native" does
  describe           say which kernel, CRIU and accelerator are used
  help               this text

CMD runs in the checkout, which is /src in the root filesystem; /tmp, /var/tmp, /run, /root
and /mnt are empty and in memory. In the VM all else is writable too, and changes are thrown
away; natively the root is read-only. The exit status is CMD's; 125 from "run" means that the
VM was lost.

Environment:
  SUITE                    Debian suite of the root: forky (default), trixie, sid, ..., or
                           experimental: sid with the CRIU from experimental
  KERNEL_SUITE             Debian suite of the kernel: forky (default, 7.0 or newer), trixie (6.12),
                           bookworm (6.1), ...
  MACHINE                  a name: the VM is another machine, with a root filesystem of its own
  CRIU_DETACHED_MIRROR     Debian mirror; default: the one in this machine's apt configuration
  CRIU_DETACHED_VM_MEMORY  memory of the VM (2G)
  CRIU_DETACHED_VM_TIMEOUT seconds after which the VM counts as lost (3600)
  CRIU_DETACHED_*, PYTEST_ADDOPTS are passed on to CMD
USAGE
}

say() { printf 'setup_kernel: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# --- What this machine has to have -------------------------------------------------------

# Packages that are missing here; each is known by a command that it brings.
missing_packages() { # missing_packages root|vm
    local purpose command package
    while read -r purpose command package; do
        [[ $purpose != "$1" ]] || command -v "$command" >/dev/null || printf '%s\n' "$package"
    done <<'NEEDS'
root mmdebstrap mmdebstrap
vm mmdebstrap mmdebstrap
vm mke2fs e2fsprogs
vm modprobe kmod
vm file file
NEEDS
    # "venv" is in Debian's base Python, but it does not work without ensurepip.
    [[ $1 != vm ]] || python3 -c 'import ensurepip, venv' 2>/dev/null || printf 'python3-venv\n'
}

install_packages() { # install_packages root|vm
    local packages
    mapfile -t packages < <(missing_packages "$1")
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    ((EUID == 0)) || die "root is needed to install ${packages[*]}"
    say "installing ${packages[*]}"
    printf '%s\n' "${packages[@]}" >>"$CACHE/installed"
    export DEBIAN_FRONTEND=noninteractive
    # A fresh machine has no lists, and old ones may name versions that are gone from the mirror.
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt_get update
    apt_get install "${packages[@]}" || { apt_get update && apt_get install "${packages[@]}"; }
}

apt_get() {
    followed apt-get apt-get --yes --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
}

# Before the first long step: what it costs and how to be rid of it.
announce() { # announce root|vm WHAT MINUTES DOWNLOAD DISK (the last two in MB)
    local packages free undo='make distclean'
    mapfile -t packages < <(missing_packages "$1")
    say "the first time, this makes $2, in .cache/"
    say "  takes $3 minutes, a download of $4 MB and $5 MB of disk"
    if ((${#packages[@]})); then
        say "  installs on this machine: ${packages[*]}"
        undo+="; apt-get autoremove --purge ${packages[*]}"
    fi
    say "  to undo: $undo"
    free=$(df --output=avail --block-size=1M "$CACHE" | tail -n 1)
    ((free >= $5)) || die "only $free MB are free in $CACHE"
}

# followed NAME CMD...: run CMD, which installs packages, and show how far it is. What it says in
# full is in a file, whose end is shown when it fails.
followed() {
    local log=$CACHE/$1.log
    shift
    "$@" 2>&1 </dev/null | follow "$log" && return
    tail -n 20 "$log" >&2
    return 1
}

# Count packages in the output of apt-get or mmdebstrap: on a terminal in one line that changes,
# else in a line every five seconds.
follow() { # follow LOG
    local log=$1 line total=0 fetched=0 unpacked=0 ready=0 shown='' pause=5 next start=$SECONDS
    [[ ! -t 2 ]] || pause=0
    next=$((SECONDS + pause))
    : >"$log"
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        case $line in
            *' newly installed, '*)
                line=${line#*, }
                total=$((total + ${line%% *}))
                ;;
            Get:*) ((total == 0)) || fetched=$((fetched + 1)) ;;
            'Unpacking '*) unpacked=$((unpacked + 1)) ;;
            'Setting up '*) ready=$((ready + 1)) ;;
        esac
        ((total > 0 && SECONDS >= next)) || continue
        next=$((SECONDS + pause))
        show_progress
    done
    ((total == 0)) || show_progress
    [[ ! -t 2 || -z $shown ]] || printf '\n' >&2
}

# With the variables of follow.
show_progress() {
    local text
    printf -v text 'setup_kernel:   %2d:%02d  of %d packages: %d fetched, %d unpacked, %d set up' \
        $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) \
        "$total" "$fetched" "$unpacked" "$ready"
    [[ $text != "$shown" ]] || return 0
    shown=$text
    if [[ -t 2 ]]; then printf '\r%s\033[K' "$text" >&2; else printf '%s\n' "$text" >&2; fi
}

mirror() {
    local uri
    if [[ -n ${CRIU_DETACHED_MIRROR:-} ]]; then
        printf '%s\n' "$CRIU_DETACHED_MIRROR"
        return
    fi
    # Security archives and third parties' are mirrors of something else.
    # shellcheck disable=SC2016  # for apt to expand
    uri=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
    # Without fetched lists the origin is not known yet.
    # shellcheck disable=SC2016
    [[ -n $uri ]] || uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        awk '$1 !~ /security/ { print; exit }')
    [[ -n $uri ]] || die "no mirror in the apt configuration: set CRIU_DETACHED_MIRROR"
    printf '%s\n' "$uri"
}

# --- Building, each into a temporary directory that is renamed when it is complete --------

debian() { # debian VARIANT PACKAGE,... SUITE DIRECTORY OPTION...
    local variant=$1 include=$2 suite=$3 directory=$4
    shift 4
    # A mirror that is a frozen snapshot has Release files past their date. What is lost when the
    # machine stops is made again, so nothing is synced.
    followed "mmdebstrap-$suite-$variant" mmdebstrap --verbose --mode=root --variant="$variant" \
        --include="$include" --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$@" "$suite" "$directory" "$(mirror)"
}

join_by_comma() {
    local IFS=,
    printf '%s\n' "$*"
}

# is_current DIRECTORY RECIPE: whether DIRECTORY was built from that very recipe.
is_current() {
    [[ -f $1/recipe && $(<"$1/recipe") == "$2" ]]
}

# build DIRECTORY RECIPE FUNCTION: have FUNCTION fill a new directory, put it in place of DIRECTORY.
build() {
    local directory=$1 recipe=$2 fill=$3 new=$1.new old=$1.old
    is_current "$directory" "$recipe" && return
    say "building ${directory#"$SOURCE_DIR/"}"
    rm -rf "$new" "$old"
    mkdir -p "$new"
    "$fill" "$new"
    printf '%s\n' "$recipe" >"$new/recipe"
    [[ ! -e $directory ]] || mv "$directory" "$old"
    mv "$new" "$directory"
    rm -rf "$old"
}

fill_kernel() {
    local new=$1 tree=$1/tree version
    # Unpacked, not installed: neither an initramfs nor udev is wanted, both cost time.
    debian extract linux-image-amd64,busybox-static "$KERNEL_SUITE" "$tree"
    mkdir -p "$new/lib"
    # Older packages are of a time before /usr was merged.
    mv "$tree"/{usr/,}lib/modules "$new/lib/" 2>/dev/null || [[ -d $new/lib/modules ]]
    cp "$(find "$tree" -path '*bin/busybox')" "$new/busybox"
    version=$(ls "$new/lib/modules")
    # Older packages have the kernel in /boot.
    [[ -e $new/lib/modules/$version/vmlinuz ]] ||
        mv "$tree/boot/vmlinuz-$version" "$new/lib/modules/$version/vmlinuz"
    depmod --basedir "$new" "$version"
    rm -rf "$tree"
    printf '%s\n' "$KERNEL_NEEDED" "$version" | sort --check=quiet --version-sort ||
        die "the kernel of $KERNEL_SUITE is $version; $KERNEL_NEEDED or newer is needed"
}

# QEMU with its libraries, run from where it was unpacked: the machine needs none of its own, which
# may be old and is then slower by a fifth when it emulates.
fill_qemu() {
    local new=$1
    debian extract qemu-system-x86 "$DEFAULT_SUITE" "$new/root"
    mkdir "$new/bin"
    cat >"$new/bin/qemu-system-x86_64" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root
libraries=$root/usr/lib/$(uname -m)-linux-gnu
exec "$libraries"/ld-linux-*.so.* --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
WRAPPER
    chmod +x "$new/bin/qemu-system-x86_64"
    PATH=$new/bin:$PATH qemu-system-x86_64 --version >/dev/null
}

# A virtual environment cannot be renamed; it counts once its recipe is written.
build_vng() {
    local recipe=$1
    is_current "$VNG_DIR" "$recipe" && return
    say "building ${VNG_DIR#"$SOURCE_DIR/"}"
    python3 -m venv --clear "$VNG_DIR"
    "$VNG_DIR/bin/python3" -m pip install --quiet --disable-pip-version-check virtme-ng
    printf '%s\n' "$recipe" >"$VNG_DIR/recipe"
}

# experimental holds only what differs from sid, and nothing of it is taken unless asked for.
experimental_options() {
    local pin='Package: src:criu\nPin: release a=experimental\nPin-Priority: 990\n'
    printf '%s\n' \
        "--setup-hook=printf '$pin' >\"\$1/etc/apt/preferences.d/experimental\"" \
        "--setup-hook=echo 'deb $(mirror) experimental main' >\"\$1/etc/apt/sources.list.d/experimental.list\""
}

fill_root() {
    local new=$1 suite=$SUITE directory options=()
    if [[ $SUITE == experimental ]]; then
        suite=sid
        mapfile -t options < <(experimental_options)
    fi
    # virtme-ng lets udevd probe every device if there is one: 12 s under emulation.
    debian minbase "$(join_by_comma "${ROOT_PACKAGES[@]}")" "$suite" "$new/root" \
        --dpkgopt='path-exclude=/usr/lib/systemd/systemd-udevd' "${options[@]}"
    for directory in "${ROOT_DIRECTORIES[@]}"; do
        mkdir -p "$new/root/$directory"
    done
    rm -rf "$new"/root/var/cache/apt/archives/*.deb
}

make_image() { # make_image DIRECTORY IMAGE
    mke2fs -q -t ext4 -d "$1" "$2" 3G >/dev/null
}

# The scripts of one checkout may be started side by side: one makes a thing, the others wait.
locked() { # locked THING CMD...
    local thing=$1
    shift
    mkdir -p "$CACHE"
    (
        flock 9
        "$@" 9>&-
    ) 9>"$CACHE/lock-$thing"
}

root_recipe() { printf '%s\n' "1 $SUITE ${ROOT_PACKAGES[*]} ${ROOT_DIRECTORIES[*]}"; }

root_costs() { announce root "a root filesystem of Debian $SUITE with CRIU" "1 to 2" 250 950; }

machine_costs() {
    if is_current "$QEMU_DIR" 1; then
        announce vm "the kernel of Debian $KERNEL_SUITE" "1 to 2" 150 200
    else
        announce vm "a virtual machine: QEMU and the kernel of Debian $KERNEL_SUITE" "1 to 2" 250 400
    fi
}

costs() {
    mkdir -p "$CACHE"
    case ${1:-root} in
        root) is_current "$SUITE_DIR" "$(root_recipe)" || root_costs ;;
        machine) has_machine || machine_costs ;;
    esac
}

prepare_root() {
    ! is_current "$SUITE_DIR" "$(root_recipe)" || return 0
    locked "$SUITE" make_root
}

make_root() {
    ! is_current "$SUITE_DIR" "$(root_recipe)" || return 0
    root_costs
    locked packages install_packages root
    build "$SUITE_DIR" "$(root_recipe)" fill_root
}

prepare_image() {
    [[ ! -e $ROOT_IMAGE ]] || return 0
    say "building ${ROOT_IMAGE#"$SOURCE_DIR/"}"
    make_image "$ROOT_DIR" "$ROOT_IMAGE.new"
    mv "$ROOT_IMAGE.new" "$ROOT_IMAGE"
}

has_machine() {
    is_current "$KERNEL_DIR" "1 $KERNEL_SUITE" && is_current "$QEMU_DIR" 1 && is_current "$VNG_DIR" 1
}

# All of a VM but its root filesystem.
prepare_machine() {
    ! has_machine || return 0
    mkdir -p "$CACHE/kernel"
    locked machine make_machine
}

make_machine() {
    ! has_machine || return 0
    machine_costs
    locked packages install_packages vm
    build "$KERNEL_DIR" "1 $KERNEL_SUITE" fill_kernel
    build "$QEMU_DIR" 1 fill_qemu
    build_vng 1
}

prepare() {
    prepare_root
    prepare_machine
    locked "image-$SUITE" prepare_image
}

# --- Running -----------------------------------------------------------------------------

# What of the ground is the default: has all that the tests need, so that they need not skip.
defaults() {
    [[ $SUITE != "$DEFAULT_SUITE" ]] || printf 'criu '
    [[ $1 != vm || $KERNEL_SUITE != "$DEFAULT_SUITE" ]] || printf 'kernel '
}

# Where the plugin is. What the VM sees of the checkout is not cached: each CRIU would read the
# plugin anew, and the emulator would translate it anew, for most of a second. So it has a copy.
plugins() {
    if [[ $1 == vm ]]; then echo /opt/plugins; else echo "/src/.cache/$SUITE/plugins"; fi
}

# The environment of a command: what a fresh login has, and what is meant for it. One
# NAME=VALUE a line, quoted for the shell.
command_environment() {
    local name
    printf '%q\n' "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        HOME=/root LANG=C.UTF-8 "TERM=${TERM:-dumb}" \
        "CRIU_DETACHED_SUITE=$SUITE" "CRIU_DETACHED_GROUND=$1" \
        "CRIU_DETACHED_DEFAULTS=$(defaults "$1")" \
        "CRIU_DETACHED_PLUGINS=$(plugins "$1")" \
        HYPOTHESIS_STORAGE_DIRECTORY=/src/.cache/hypothesis
    for name in "${!CRIU_DETACHED_@}" PYTEST_ADDOPTS; do
        case $name in
            CRIU_DETACHED_SUITE | CRIU_DETACHED_GROUND) continue ;;
            CRIU_DETACHED_DEFAULTS | CRIU_DETACHED_PLUGINS) continue ;;
        esac
        [[ ! -v $name ]] || printf '%q\n' "$name=${!name}"
    done
}

# A line of shell that replaces the shell by the command, in that environment.
command_line() { # command_line GROUND CMD...
    printf 'exec env -i'
    command_environment "$1" | while IFS= read -r setting; do printf ' %s' "$setting"; done
    shift
    printf ' %q' "$@"
    printf '\n'
}

# Runs in a mount namespace of its own. CRIU needs to see the whole mount tree, which a
# chroot hides from it: so the root is pivoted into.
# shellcheck disable=SC2016  # expanded by the shell that runs it
readonly ENTER_ROOT='
set -euo pipefail
root=$1 source=$2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup 2>/dev/null || true
# A container may not mount a devtmpfs; it has a /dev that can be shown again.
mount -t devtmpfs devtmpfs dev 2>/dev/null || mount --bind /dev dev
mkdir -p dev/pts dev/shm
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for directory in tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$directory"; done
for directory in run mnt; do mount -t tmpfs -o mode=755 tmpfs "$directory"; done
mount -t tmpfs -o mode=700 tmpfs root
mount --bind "$source" src
pivot_root . .
umount -l .
cd /src
'

# A file of the caller left open would be a file on a mount that CRIU cannot see.
close_inherited_files() {
    local fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        ((fd <= 2)) || eval "exec $fd>&-"
    done
}

native() {
    (($#)) || die "native: no command given"
    ((EUID == 0)) || die "native: root is needed"
    prepare_root
    close_inherited_files
    [[ -t 0 ]] || exec </dev/null
    exec unshare --mount --propagation private -- \
        bash -c "$ENTER_ROOT$(command_line native "$@")" native "$ROOT_DIR" "$SOURCE_DIR"
}

has_all_for_plugin() {
    local version command
    # The demo shows redis-server and podman.
    for command in criu cc make python3 redis-server podman crun; do
        command -v "$command" >/dev/null || return 1
    done
    [[ -d /usr/lib/criu && -d /etc/criu && -e /usr/lib/$(uname -m)-linux-gnu/libcriu.so.2 ]] || return 1
    version=$(criu --version | awk '/^Version:/ { print $2 }')
    printf '4.1\n%s\n' "$version" | sort --check=quiet --version-sort || return 1
    python3 -c '
import os, sys, sysconfig
import cffi
header = os.path.join(sysconfig.get_path("include"), "Python.h")
shared = sysconfig.get_config_var("Py_ENABLE_SHARED")
sys.exit(sys.version_info < (3, 11) or not shared or not os.path.exists(header))' 2>/dev/null
}

auto() {
    (($#)) || die "auto: no command given"
    if has_all_for_plugin; then
        say "using this machine's own $(criu --version | head -n 1)"
        cd "$SOURCE_DIR"
        exec "$@"
    fi
    native "$@"
}

# /dev/kvm may be there and yet not work: only a kernel that has begun to boot proves it. Once in
# each life of this machine.
kvm_works() {
    local boot answer
    [[ -w /dev/kvm ]] || return 1
    read -r boot </proc/sys/kernel/random/boot_id
    if [[ ! -f $CACHE/kvm || $(<"$CACHE/kvm") != "$boot "* ]]; then
        answer=no
        ! boots_with_kvm || answer=yes
        printf '%s %s\n' "$boot" "$answer" >"$CACHE/kvm"
    fi
    [[ $(<"$CACHE/kvm") == "$boot yes" ]]
}

boots_with_kvm() {
    local output line status=1
    # Ended by itself or by us: when a virtual CPU fails, QEMU waits for a debugger.
    exec {output}< <(exec timeout 20 "$QEMU_DIR/bin/qemu-system-x86_64" -accel kvm -cpu host \
        -machine q35 -m 512 -nodefaults -display none -serial stdio -no-reboot \
        -kernel "$(echo "$KERNEL_DIR"/lib/modules/*/vmlinuz)" -append 'console=ttyS0 panic=-1' \
        2>&1 </dev/null)
    while IFS= read -r -u "$output" line; do
        case $line in
            *'Linux version '*)
                status=0
                break
                ;;
            *'KVM internal error'*) break ;;
        esac
    done
    kill $! 2>/dev/null || true
    exec {output}<&-
    return "$status"
}

# With more than one CPU, the kernel's patching of itself meets a bug of QEMU's emulation.
accelerator_options() {
    if kvm_works; then
        printf '%s\n' --cpus "$(nproc)"
    else
        printf '%s\n' --disable-kvm --cpus 1 --append mitigations=off --append nokaslr
    fi
}

# What virtme-ng starts in the VM. Without udev, virtme-ng does not find its own ports for
# the standard streams, and leaves them on the console; find them here. The status goes
# through the checkout: its absence tells that the VM was lost.
guest_script() { # guest_script RUN_DIRECTORY CMD...
    local run=/src/${1#"$SOURCE_DIR/"}
    shift
    cat <<GUEST
port() {
    for directory in /sys/class/virtio-ports/*; do
        read -r name <"\$directory/name"
        [ "\$name" != "virtme.\$1" ] || echo "/dev/\${directory##*/}"
    done
}
exec <"\$(port stdin)" >"\$(port stdout)" 2>"\$(port stderr)" 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
mount -t tmpfs -o mode=1777 tmpfs /tmp
# virtme-ng leaves it without write permission for others, as whom a user namespace opens it.
chmod 666 /dev/null
# File systems are loaded when they are mounted; what is behind a device file is not.
modprobe loop
mount -t tmpfs -o mode=755 tmpfs /mnt
mount -t tmpfs -o mode=700 tmpfs /root
cd /src
[ ! -d .cache/$SUITE/plugins ] || cp -a .cache/$SUITE/plugins $(plugins vm)
setsid --wait sh $run/command.sh
echo \$? >$run/status.new
mv $run/status.new $run/status
GUEST
}

# vm RUN_DIRECTORY: become the VM. Started as a job, it is one process that can be signalled,
# which takes QEMU with it.
vm() {
    local run=$1 kernel accelerator console foreground=()
    # In the background, where timeout can stop the whole group, a terminal cannot be read.
    [[ ! -t 0 ]] || foreground=(--foreground)
    kernel=$(echo "$KERNEL_DIR"/lib/modules/*/vmlinuz)
    mapfile -t accelerator < <(accelerator_options)
    # What the kernel has to say, for when the VM is lost; virtme-ng drops it.
    console="-chardev file,id=kernel-log,path=$run/console.log"
    console+=" -device virtio-serial-pci -device virtconsole,chardev=kernel-log"
    # virtiofs is not used: it needs a daemon that many machines lack or have too old.
    # -snapshot: the image is not written, so that runs neither see nor disturb each other.
    export PATH=$VNG_DIR/bin:$QEMU_DIR/bin:$PATH
    exec timeout "${foreground[@]}" --kill-after=10 "$VM_TIMEOUT" vng \
        --run "$kernel" "${accelerator[@]}" --memory "$VM_MEMORY" \
        --busybox "$KERNEL_DIR/busybox" --force-9p \
        --root-disk "$ROOT_IMAGE" --root-fstype ext4 --rw --rwdir "/src=$SOURCE_DIR" \
        --append console=hvc0 --append loglevel=4 --qemu-opts="-snapshot $console" \
        --user root -- sh "/src/${run#"$SOURCE_DIR/"}/guest.sh"
}

# Wait for a job, also when a signal comes; the signal ends the job.
wait_for() {
    local status=0
    # shellcheck disable=SC2064  # the job is known now
    trap "kill -TERM $1 2>/dev/null || true" INT TERM HUP
    while kill -0 "$1" 2>/dev/null; do
        status=0
        wait "$1" || status=$?
    done
    trap - INT TERM HUP
    return "$status"
}

run() {
    (($#)) || die "run: no command given"
    ((EUID == 0)) || die "run: root is needed"
    prepare
    local directory vm_status=0 status out err out_pid err_pid
    directory=$(mktemp -d "$CACHE/run.XXXXXX")
    command_line vm "$@" >"$directory/command.sh"
    guest_script "$directory" "$@" >"$directory/guest.sh"
    [[ -t 0 ]] || exec </dev/null
    # QEMU opens its output streams anew: a file would be truncated and overwritten.
    exec {out}> >(exec cat)
    out_pid=$!
    exec {err}> >(exec cat >&2)
    err_pid=$!
    vm "$directory" <&0 1>&"$out" 2>&"$err" &
    wait_for $! || vm_status=$?
    exec {out}>&- {err}>&-
    wait "$out_pid" "$err_pid"
    if [[ -s $directory/status ]]; then
        status=$(<"$directory/status")
        rm -rf "$directory"
        return "$status"
    fi
    tail -n 40 "$directory/console.log" >&2 || true
    if ((vm_status == 124)); then
        say "VM LOST: no end within $VM_TIMEOUT s; console: $directory/console.log"
    else
        say "VM LOST: it ended without a status (virtme-ng: $vm_status); console: $directory/console.log"
    fi
    return "$VM_LOST"
}

describe() {
    prepare
    printf 'kernel in the VM: %s\n' "$(ls "$KERNEL_DIR/lib/modules")"
    printf 'kernel natively:  %s\n' "$(uname -r)"
    # shellcheck disable=SC2016  # for dpkg-query to expand
    printf 'root filesystem:  %s, CRIU %s\n' "$SUITE" \
        "$(chroot "$ROOT_DIR" dpkg-query --show --showformat '${Version}' criu)"
    printf 'accelerator:      %s\n' "$(kvm_works && echo KVM || echo none, emulation)"
}

main() {
    local command=${1:-prepare}
    (($# == 0)) || shift
    case $command in
        prepare) "prepare${1:+_$1}" ;;
        costs) costs "$@" ;;
        run | native | auto) "$command" "$@" ;;
        describe) describe ;;
        help | -h | --help) usage ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
}

main "$@"
