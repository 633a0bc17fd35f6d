# Enter an arm64 root in a mount namespace of its own, which takes its mounts with it:
#     unshare --mount --propagation private sh enter.sh ROOT CPUINFO [SOURCE PLACE]… -- COMMAND…
set -eu
root=$1 cpuinfo=$2
shift 2
mount --rbind /sys "$root/sys"
mount --rbind /proc "$root/proc"
# With the x86-64 machine's own, LiteRT and onnxruntime crash.
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/root"
while [ "$1" != -- ]; do
  mkdir -p "$root$2"
  mount --bind "$1" "$root$2"
  mount -o remount,bind,ro "$root$2"
  shift 2
done
shift
cd "$root"
exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 COLUMNS="${COLUMNS:-120}" \
  OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/code:/opt/site \
  QEMU_CPU="$QEMU_CPU" chroot "$root" "$@"
