// Plain Kotlin, no Android in it; make test-android compiles and tests it without Gradle.
plugins {
    alias(libs.plugins.kotlin.jvm)
}

kotlin {
    jvmToolchain(17)
    sourceSets {
        test {
            kotlin.srcDir("src/testFixtures/kotlin")
            // The traces and the manifest that Python's tests read too, and the tiny tokenizer.
            resources.srcDir(rootDir.resolve("../tests/golden"))
            resources.srcDir(rootDir.resolve("../models/gemma4-tiny/target"))
        }
    }
}

dependencies {
    testImplementation(libs.junit)
}
