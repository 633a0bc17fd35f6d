#!/usr/bin/env bash
# make test-android: compile :loop, run its tests, build an APK that replays the golden traces on a
# device, sign it and verify it. Needs nothing but Debian's packages: `test.sh --install` installs them.
set -euo pipefail
cd "$(dirname "$0")"
DEMO=$PWD
GOLDEN=$(cd ../tests/golden && pwd)
TINY=$(cd ../models/gemma4-tiny/target && pwd) # its tokenizer.json
TOY=$(cd ../tests/runtime_py/backends && pwd) # its toy.litertlm
BUILD=${BUILD:-$(dirname "$DEMO")/build/android}
mkdir -p "$BUILD/tools"
. ./tools.sh

LOOP=(loop/src/main/kotlin loop/src/testFixtures/kotlin)
STDLIB=$JAVA_LIBRARIES/kotlin-stdlib-1.3.31.jar
TEST_LIBRARIES=$JAVA_LIBRARIES/junit4.jar:$JAVA_LIBRARIES/hamcrest.jar
export JAVA_OPTS="-Xmx1G" # what kotlinc and apksigner hand to java

step() { printf '%-9s %s\n' "$1" "$2"; }

# Debian's kotlinc warns of its own java options, whatever it compiles.
debian_kotlinc() {
  kotlinc -Werror -jvm-target 1.8 "$@" 2> >(grep -v 'Xverify:none and -noverify' >&2)
}

kotlinc_of_today() {
  java $JAVA_OPTS -cp "$KOTLIN_LIBRARIES/*" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler \
    -no-stdlib -no-reflect -jvm-target 1.8 "$@"
}

# Run every …Test.kt of :loop, as found on a class path.
run_tests() {
  local tests
  tests=$(cd loop/src/test/kotlin && find . -name '*Test.kt' | sed 's|^\./||; s|\.kt$||; s|/|.|g' | sort)
  java -cp "$1:$TEST_LIBRARIES:$GOLDEN:$TINY:$TOY" org.junit.runner.JUnitCore $tests
}

compile_and_test() {
  rm -rf "$BUILD/loop" "$BUILD/loop-tests"
  debian_kotlinc "${LOOP[@]}" -d "$BUILD/loop"
  debian_kotlinc loop/src/test/kotlin -cp "$BUILD/loop:$TEST_LIBRARIES" -d "$BUILD/loop-tests"
  step loop "compiled by Debian's Kotlin"
  run_tests "$BUILD/loop:$BUILD/loop-tests:$STDLIB"
}

compile_and_test_today() {
  if ! find_kotlin_of_today; then
    step loop "NOT compiled by Kotlin $KOTLIN_OF_TODAY: npm can't fetch kotlin-compiler; see $BUILD/npm.log" >&2
    return
  fi
  local classes="$BUILD/loop-today"
  rm -rf "$classes"
  kotlinc_of_today "${LOOP[@]}" loop/src/test/kotlin \
    -cp "$KOTLIN_LIBRARIES/kotlin-stdlib.jar:$TEST_LIBRARIES" -d "$classes"
  step loop "compiled by Kotlin $KOTLIN_OF_TODAY"
  run_tests "$classes:$KOTLIN_LIBRARIES/kotlin-stdlib.jar"
}

# classes -> classes.dex; manifest, resources and traces -> an unsigned APK; aligned, signed.
build_apk() {
  local work="$BUILD/apk" source=selftest/src/main
  rm -rf "$work"
  mkdir -p "$work/assets"
  cp "$GOLDEN/loop-traces.json" "$TINY/tokenizer.json" "$work/assets/"
  debian_kotlinc "$source/kotlin" -cp "$BUILD/loop:$ANDROID_JAR" -d "$work/classes"
  java $JAVA_OPTS -cp "$DX_JAR" com.android.dx.command.Main --dex --min-sdk-version=26 \
    --output="$work/classes.dex" "$BUILD/loop" "$work/classes" "$STDLIB"
  aapt2 compile --dir "$source/res" -o "$work/resources.zip"
  aapt2 link "$work/resources.zip" --manifest "$source/AndroidManifest.xml" -I "$FRAMEWORK" \
    -A "$work/assets" -o "$work/unaligned.apk"
  (cd "$work" && jar --update --file unaligned.apk --no-manifest classes.dex)
  zipalign -f 4 "$work/unaligned.apk" "$APK"
  sign_apk "$work/key.jks"
}

sign_apk() {
  local key=$1
  keytool -genkeypair -keystore "$key" -storepass selftest -keypass selftest -alias selftest \
    -keyalg RSA -keysize 2048 -validity 10000 -dname "CN=gemma-export self-test" 2>/dev/null
  apksigner sign --ks "$key" --ks-pass pass:selftest "$APK"
  rm "$key" # every build has a key of its own
}

# Refuse an APK that is not signed, not aligned, or not of the parts it should have.
verify_apk() {
  apksigner verify --verbose --min-sdk-version 26 "$APK" | grep -E '^Verified using v[23]|^Verifies'
  zipalign -c 4 "$APK"
  aapt2 dump badging "$APK" >"$BUILD/badging.txt"
  grep -q "^package: name='dev.gemmaexport.selftest'" "$BUILD/badging.txt"
  grep -q "^launchable-activity: name='dev.gemmaexport.selftest.SelfTestActivity'" "$BUILD/badging.txt"
  rm -rf "$BUILD/unpacked"
  unzip -q "$APK" -d "$BUILD/unpacked"
  [ -s "$BUILD/unpacked/AndroidManifest.xml" ] && [ -s "$BUILD/unpacked/resources.arsc" ]
  cmp "$BUILD/unpacked/assets/loop-traces.json" "$GOLDEN/loop-traces.json"
}

# No Android runs here, but what its virtual machine would be given can be run: the APK's classes.dex,
# translated back to Java's byte code by enjarify, which has nothing to do with the dex compiler.
test_dex() {
  local classes="$BUILD/from-dex.jar"
  PYTHONPATH=/usr/lib/python3/dist-packages /usr/bin/python3 -O -m enjarify.main \
    --force --output "$classes" "$APK"
  jar --list --file "$classes" | grep -x dev/gemmaexport/selftest/SelfTestActivity.class
  # The standard library is the APK's too.
  run_tests "$classes:$BUILD/loop-tests"
}

APK=$BUILD/gemma-export-selftest.apk
if [ "${1:-}" = --install ]; then
  install_debian_tools
  exit
fi
find_debian_tools
compile_and_test
compile_and_test_today
find_dex_compiler
build_apk
verify_apk
test_dex
step apk "$APK, $(stat -c %s "$APK") bytes: built, signed, verified, its dex tested"
