// Plain Kotlin, no Android in it; make test-android compiles and tests it without Gradle.
import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.kotlin.jvm)
}

java {
    sourceCompatibility = JavaVersion.VERSION_17
    targetCompatibility = JavaVersion.VERSION_17
}

kotlin {
    compilerOptions { jvmTarget = JvmTarget.JVM_17 }
    sourceSets {
        test {
            kotlin.srcDir("src/testFixtures/kotlin")
            // The traces and the manifest that Python's tests read too, the tiny tokenizer, and a toy .litertlm.
            resources.srcDir(rootDir.resolve("../tests/golden"))
            resources.srcDir(rootDir.resolve("../models/gemma4-tiny/target"))
            resources.srcDir(rootDir.resolve("../tests/runtime_py/backends"))
        }
    }
}

dependencies {
    testImplementation(libs.junit)
}
