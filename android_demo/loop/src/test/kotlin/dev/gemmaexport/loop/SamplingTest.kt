package dev.gemmaexport.loop

import java.util.Random
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplingTest {
    @Test
    fun `philox gives the known answers`() {
        // Random123's, for philox4x32 with 10 rounds
        val ones = 0xFFFFFFFFL
        assertArrayEquals(
            longArrayOf(0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            philox(longArrayOf(0, 0, 0, 0), 0, 0)
        )
        assertArrayEquals(
            longArrayOf(0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            philox(longArrayOf(ones, ones, ones, ones), ones, ones)
        )
        assertArrayEquals(
            longArrayOf(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            philox(longArrayOf(0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0xA4093822, 0x299F31D0)
        )
    }

    @Test
    fun `top-k is that of a stable sort`() {
        val random = Random(1)
        for (round in 0 until 300) {
            val logits = FloatArray(1 + random.nextInt(60)) { random.nextInt(1 + round % 9).toFloat() }
            val k = 1 + random.nextInt(logits.size)
            val wanted = logits.indices.sortedByDescending { logits[it] }.take(k).sorted()
            val found = survivingTokens(logits, SamplingParams(temperature = 1.0, topK = k)).tokenIds
            assertEquals(wanted, found.toList())
        }
    }

    @Test
    fun `large vocabularies take short cuts that change nothing`() {
        val random = Random(2)
        for (spread in listOf(0.001, 0.5, 5.0)) {
            val logits = FloatArray(20000) { (spread * random.nextGaussian()).toFloat() }
            for (topP in listOf(0.1, 0.6, 0.95)) {
                val sampling = SamplingParams(temperature = 1.0, topP = topP, seed = 5)
                assertEquals(ranked(logits, topP), survivingTokens(logits, sampling).tokenIds.toList())
            }
            val sampling = SamplingParams(temperature = 1.0, seed = 6)
            val best = logits.indices.sortedByDescending { logits[it] + gumbel(6, 9, it) }.first()
            assertEquals(best, choose(logits, sampling, 9))
        }
    }

    @Test
    fun `draws fit the softmax`() {
        val logits = floatArrayOf(0f, 1f, 2f, -1f)
        val counts = IntArray(4)
        for (position in 0 until 20000) counts[choose(logits, SamplingParams(temperature = 1.0, seed = 3), position)]++
        val weights = logits.map { Math.exp(it.toDouble()) }
        val chiSquared = counts.indices.map {
            val wanted = 20000 * weights[it] / weights.sum()
            (counts[it] - wanted) * (counts[it] - wanted) / wanted
        }.sum()
        assertTrue("$chiSquared", chiSquared < 16.3) // 0.1 % at three degrees of freedom
    }

    @Test
    fun `greedy takes the first of equals`() {
        assertEquals(1, choose(floatArrayOf(0f, 2f, 2f, 1f), GREEDY, 5))
    }

    @Test
    fun `sampling refuses values out of range`() {
        val bad = listOf(
            { SamplingParams(temperature = -1.0) }, { SamplingParams(temperature = Double.NaN) },
            { SamplingParams(temperature = Double.POSITIVE_INFINITY) }, { SamplingParams(topK = -1) },
            { SamplingParams(topP = 0.0) }, { SamplingParams(topP = 1.5) }, { SamplingParams(topP = Double.NaN) }
        )
        assertEquals(bad.size, bad.count { make -> runCatching { make() }.exceptionOrNull() is RunException })
    }

    private fun ranked(logits: FloatArray, topP: Double): List<Int> {
        val most = logits.sortedDescending().first().toDouble()
        val weights = logits.map { StrictMath.exp(it.toDouble() - most) }
        var mass = 0.0
        val ids = logits.indices.sortedByDescending { logits[it] }
        return ids.takeWhile { id -> (mass < topP * weights.sum()).also { mass += weights[id] } }.sorted()
    }
}
