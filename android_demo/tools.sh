# Sourced by test.sh: finds what is needed, or says in one line what is missing and how to get it.
# Debian 12 has everything but a dex compiler and an android.jar. Those two packages of Debian 11 are
# unpacked into build/, not installed, from the mirror that this machine's apt already uses.

TOOLS="$BUILD/tools"
JAVA_LIBRARIES=/usr/share/java
FRAMEWORK=/usr/share/android-framework-res/framework-res.apk
PACKAGES="aapt android-framework-res apksigner enjarify junit4 kotlin libhamcrest-java
  openjdk-17-jdk-headless unzip zipalign"
KOTLIN_OF_TODAY=2.4.20

skip() {
  echo "SKIPPED make test-android: $1" >&2
  exit 0
}

install_debian_tools() {
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends $PACKAGES
}

find_debian_tools() {
  local missing=""
  for command in kotlinc java keytool aapt2 zipalign apksigner unzip; do
    command -v "$command" >/dev/null || missing="$missing $command"
  done
  for file in "$FRAMEWORK" "$JAVA_LIBRARIES/junit4.jar" "$JAVA_LIBRARIES/hamcrest.jar" \
    /usr/lib/python3/dist-packages/enjarify; do
    [ -e "$file" ] || missing="$missing $file"
  done
  [ -z "$missing" ] || skip "no$missing; android_demo/test.sh --install installs what is missing (as root)"
}

find_dex_compiler() {
  local root="$TOOLS/debian-11"
  DX_JAR="$root/usr/share/java/com.android.dx.jar"
  ANDROID_JAR="$root/usr/share/java/com.android.android-23.jar"
  [ -e "$DX_JAR" ] && [ -e "$ANDROID_JAR" ] && return
  unpack_from_debian_11 "$root" dalvik-exchange libandroid-23-java >"$BUILD/apt.log" 2>&1 ||
    skip "no dex compiler: dalvik-exchange and libandroid-23-java of Debian 11 can't be had; see $BUILD/apt.log"
}

unpack_from_debian_11() {
  local root="$1" keys=/usr/share/keyrings/debian-archive-keyring.gpg apt="$BUILD/apt" mirror
  shift
  rm -rf "$apt" "$root"
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
  [ -n "$mirror" ] || { echo "apt knows no mirror of Debian; apt-get update"; return 1; }
  echo "deb [signed-by=$keys] $mirror bullseye main" >"$apt/sources.list"
  local options=(
    -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt" -o "Dir::Cache::archives=$apt/archives"
    -o APT::Sandbox::User=root
  )
  apt-get "${options[@]}" update && (cd "$apt" && apt-get "${options[@]}" download "$@") || return 1
  local package
  for package in "$apt"/*.deb; do dpkg-deb --extract "$package" "$root" || return 1; done
}

# Debian's Kotlin is of 2019; the app's is of today, and :loop must suit both.
find_kotlin_of_today() {
  local root="$TOOLS/kotlin-$KOTLIN_OF_TODAY"
  KOTLIN_LIBRARIES="$root/package/lib"
  [ -e "$KOTLIN_LIBRARIES/kotlin-compiler.jar" ] && return
  rm -rf "$root"
  mkdir -p "$root"
  (cd "$root" && npm pack --silent "kotlin-compiler@$KOTLIN_OF_TODAY" && tar -xzf ./*.tgz && rm ./*.tgz) \
    >"$BUILD/npm.log" 2>&1
}
