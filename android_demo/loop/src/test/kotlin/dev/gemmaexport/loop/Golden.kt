package dev.gemmaexport.loop

/** The text of one of tests/golden, a folder on the class path of these tests. */
fun golden(name: String): String {
    val stream = checkNotNull(Golden::class.java.getResourceAsStream("/$name")) { "no $name" }
    return stream.use { it.readBytes().toString(Charsets.UTF_8) }
}

private class Golden
