package dev.gemmaexport.selftest

import android.app.Activity
import android.os.Bundle
import android.util.Log
import android.widget.ScrollView
import android.widget.TextView
import dev.gemmaexport.loop.GoldenTraces
import kotlin.concurrent.thread

private const val TAG = "gemma-export"

/** Replays the golden traces on this device, shows what came of it and writes it to the log. */
class SelfTestActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val report = TextView(this)
        report.textSize = 16f
        report.setPadding(48, 48, 48, 48)
        report.setTextIsSelectable(true)
        report.text = "Replaying what runtime_py recorded …"
        setContentView(ScrollView(this).apply { addView(report) })
        thread(name = "self-test") {
            val text = selfTest()
            runOnUiThread { report.text = text }
        }
    }

    private fun selfTest(): String {
        val start = System.nanoTime()
        val replays = GoldenTraces(asset("loop-traces.json"), asset("tokenizer.json")).replayAll()
        val lines = replays.map { "${it.what}: ${it.numEqual} of ${it.numReplayed} equal" }
        val differences = replays.flatMap { it.differences }
        val verdict = if (differences.isEmpty()) "PASSED" else "FAILED"
        val seconds = (System.nanoTime() - start) / 1e9
        val report = listOf("$verdict in %.1f s".format(seconds), "") + lines + differences
        report.forEach { Log.i(TAG, it) } // adb logcat -s gemma-export
        return report.joinToString("\n")
    }

    private fun asset(name: String): String =
        assets.open(name).use { it.readBytes().toString(Charsets.UTF_8) }
}
