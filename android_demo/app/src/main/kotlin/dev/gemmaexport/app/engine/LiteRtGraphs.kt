package dev.gemmaexport.app.engine

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import com.google.ai.edge.litert.LiteRtException
import com.google.ai.edge.litert.TensorBuffer
import com.google.ai.edge.litert.TensorType
import dev.gemmaexport.loop.Drafted
import dev.gemmaexport.loop.Graphs
import dev.gemmaexport.loop.RunException
import dev.gemmaexport.loop.TargetInputs
import dev.gemmaexport.loop.extractSection
import dev.gemmaexport.loop.readModelSections
import java.io.Closeable
import java.io.File

/**
 * The graphs of a .litertlm on LiteRT's CPU, over one KV buffer.
 *
 * Each KV tensor is one TensorBuffer, bound as the target's input and output and as the drafter's
 * input: nothing copies it.
 *
 * @param scratch a folder of the app's own. LiteRT opens whole files, so the sections are copied
 *     there once, and XNNPACK keeps its repacked weights there.
 */
class LiteRtGraphs(model: File, private val scratch: File, numThreads: Int) : Graphs, Closeable {
    private val sections = readModelSections(model).associateBy { it.modelType }
    private val source = model
    private val environment = Environment.create()
    private val threads = numThreads
    private val models = ArrayList<CompiledModel>()

    private val target = open("tf_lite_prefill_decode") ?: missing("tf_lite_prefill_decode")
    private val drafter = open("tf_lite_mtp_drafter")
    private val embedder = Lookup(open("tf_lite_embedder") ?: missing("tf_lite_embedder"))
    private val perLayer = open("tf_lite_per_layer_embedder")?.let { Lookup(it) }

    override val cacheLength = shape(target, "mask", "decode").last()
    override val hiddenSize = shape(target, "embeddings", "decode").last()
    override val vocabSize =
        target.getOutputTensorType("logits", "decode").layout?.dimensions?.last() ?: missing("logits")
    override val perLayerSize =
        if (perLayer == null) 0 else shape(target, "per_layer_embeddings", "decode").drop(2).reduce(Int::times)
    override val hasDrafter = drafter != null

    private val kv = kvNames(target, "decode").associateWith { target.createInputBuffer(it, "decode") }
    private val verifySteps = steps(listOf("decode", "verify") + (2..MAX_VERIFY).map { "verify_$it" }, logits = true)
    private val prefillSteps = steps((0..MAX_PREFILL_BITS).map { "prefill_${1 shl it}" }, logits = false)
    override val verifyWidths = verifySteps.keys.sorted().toIntArray()
    override val prefillWidths = prefillSteps.keys.sorted().toIntArray()

    private val drafterInputs: Map<String, TensorBuffer>
    private val drafterOutputs: Map<String, TensorBuffer>

    init {
        val draft = drafter
        // The mask hides stale rows by multiplying them by zero: none may be a NaN.
        for ((name, buffer) in kv) {
            val size = shape(target, name, "decode").reduce(Int::times)
            when (target.getInputTensorType(name, "decode").elementType) {
                TensorType.ElementType.INT8 -> buffer.writeInt8(ByteArray(size))
                else -> buffer.writeFloat(FloatArray(size))
            }
        }
        val shared = if (draft == null) emptyList() else kvNames(draft, "")
        drafterInputs = if (draft == null) emptyMap() else {
            DRAFTER_INPUTS.associateWith { draft.createInputBuffer(it) } + shared.associateWith { kv.getValue(it) }
        }
        drafterOutputs = if (draft == null) emptyMap() else DRAFTER_OUTPUTS.associateWith { draft.createOutputBuffer(it) }
    }

    override fun embed(tokenId: Int, rows: FloatArray, offset: Int) = embedder.into(tokenId, rows, offset)

    override fun embedPerLayer(tokenId: Int, rows: FloatArray, offset: Int) {
        perLayer?.into(tokenId, rows, offset)
    }

    override fun prefill(width: Int, inputs: TargetInputs) = prefillSteps.getValue(width).run(inputs)

    override fun verify(width: Int, inputs: TargetInputs): Pair<FloatArray, FloatArray> {
        val step = verifySteps.getValue(width)
        step.run(inputs)
        return Pair(
            step.outputs.getValue("logits").readFloat(),
            step.outputs.getValue("activations").readFloat()
        )
    }

    override fun draft(activations: FloatArray, position: Int, mask: FloatArray): Drafted {
        val model = drafter ?: missing("tf_lite_mtp_drafter")
        drafterInputs.getValue("activations").writeFloat(activations)
        drafterInputs.getValue("input_pos").writeInt(intArrayOf(position))
        drafterInputs.getValue("mask").writeFloat(mask)
        model.run(drafterInputs, drafterOutputs)
        return Drafted(
            drafterOutputs.getValue("logits").readFloat(),
            drafterOutputs.getValue("projected_activations").readFloat()
        )
    }

    override fun close() {
        models.forEach { it.close() }
        environment.close()
    }

    private fun open(modelType: String): CompiledModel? {
        val section = sections[modelType] ?: return null
        val file = File(scratch, "$modelType.tflite")
        extractSection(source, section, file)
        val options = CompiledModel.Options(Accelerator.CPU)
        options.cpuOptions = CompiledModel.CpuOptions(
            numThreads = threads,
            xnnPackWeightCachePath = File(scratch, "$modelType.xnnpack").path
        )
        return CompiledModel.create(file.path, options, environment).also { models.add(it) }
    }

    /** The signatures that are there, by width. LiteRT's Kotlin API does not list them. */
    private fun steps(names: List<String>, logits: Boolean): Map<Int, Step> =
        names.filter { has(target, "input_pos", it) }
            .associate { name -> shape(target, "input_pos", name).single() to Step(name, logits) }

    private fun missing(what: String): Nothing = throw RunException("$source: no $what in it; export again")

    /** One signature of the target with its buffers. */
    private inner class Step(private val signature: String, logits: Boolean) {
        private val own = (TARGET_INPUTS + if (perLayer == null) emptyList() else listOf("per_layer_embeddings"))
            .associateWith { target.createInputBuffer(it, signature) }
        private val inputs = own + kv
        val outputs = kv + if (logits) TARGET_OUTPUTS.associateWith { target.createOutputBuffer(it, signature) } else emptyMap()

        fun run(values: TargetInputs) {
            own.getValue("embeddings").writeFloat(values.embeddings)
            own["per_layer_embeddings"]?.writeFloat(values.perLayer)
            own.getValue("input_pos").writeInt(values.positions)
            own.getValue("mask").writeFloat(values.mask)
            target.run(inputs, outputs, signature)
        }
    }

    /** An embedding table: one row per call, as the official graphs have it. */
    private class Lookup(private val model: CompiledModel) {
        private val inputs = mapOf("token_ids" to model.createInputBuffer("token_ids"))
        private val outputs = mapOf("embeddings" to model.createOutputBuffer("embeddings"))

        fun into(tokenId: Int, rows: FloatArray, offset: Int) {
            inputs.getValue("token_ids").writeInt(intArrayOf(tokenId))
            model.run(inputs, outputs)
            outputs.getValue("embeddings").readFloat().copyInto(rows, offset)
        }
    }

    private companion object {
        const val MAX_VERIFY = 64
        const val MAX_PREFILL_BITS = 12
        const val MAX_LAYERS = 256
        val TARGET_INPUTS = listOf("embeddings", "input_pos", "mask")
        val TARGET_OUTPUTS = listOf("logits", "activations")
        val DRAFTER_INPUTS = listOf("activations", "input_pos", "mask")
        val DRAFTER_OUTPUTS = listOf("logits", "projected_activations")

        fun has(model: CompiledModel, input: String, signature: String): Boolean = try {
            model.getInputTensorType(input, signature)
            true
        } catch (error: LiteRtException) {
            false
        }

        fun shape(model: CompiledModel, input: String, signature: String): List<Int> =
            model.getInputTensorType(input, signature).layout?.dimensions
                ?: throw RunException("$signature: $input has no shape; export again")

        fun kvNames(model: CompiledModel, signature: String): List<String> =
            (0 until MAX_LAYERS).flatMap { listOf("kv_cache_k_$it", "kv_cache_v_$it") }
                .filter { has(model, it, signature) }
    }
}
