plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.compose)
}

android {
    namespace = "dev.gemmaexport.app"
    compileSdk = 37 // as far as this AGP goes: what AndroidX asks for rises

    defaultConfig {
        applicationId = "dev.gemmaexport.app"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
        // What LiteRT and LiteRT-LM are built for.
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    // A target and no toolchain: whatever JDK Android Studio brings builds it.
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    buildTypes {
        release {
            isMinifyEnabled = false // JNI of LiteRT-LM looks classes up by name
        }
    }
}

dependencies {
    implementation(project(":loop"))
    implementation(platform(libs.compose.bom))
    implementation(libs.activity.compose)
    implementation(libs.compose.material3)
    implementation(libs.coroutines.android)
    implementation(libs.lifecycle.runtime.compose)
    implementation(libs.lifecycle.viewmodel)
    implementation(libs.litert)
    implementation(libs.litertlm)
}
