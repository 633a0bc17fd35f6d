package dev.gemmaexport.app

import androidx.compose.foundation.Canvas
import androidx.compose.foundation.background
import androidx.compose.foundation.horizontalScroll
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.Spacer
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.height
import androidx.compose.foundation.layout.imePadding
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.layout.width
import androidx.compose.foundation.layout.widthIn
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.foundation.lazy.rememberLazyListState
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.shape.RoundedCornerShape
import androidx.compose.foundation.text.KeyboardOptions
import androidx.compose.material3.Button
import androidx.compose.material3.FilterChip
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Slider
import androidx.compose.material3.Surface
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.material3.lightColorScheme
import androidx.compose.runtime.Composable
import androidx.compose.runtime.LaunchedEffect
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.draw.clip
import androidx.compose.ui.geometry.Offset
import androidx.compose.ui.geometry.Size
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.text.font.FontWeight
import androidx.compose.ui.text.input.KeyboardType
import androidx.compose.ui.unit.dp
import kotlin.math.roundToInt

private val Ink = Color(0xFF1B4B43)
private val Kept = Color(0xFF2E8B77)
private val Drafted = Color(0xFFCFE3DD)

/** The one screen. Nothing of Android in it: screenshot/Render.kt draws it on a desktop too. */
@Composable
fun ChatScreen(state: ChatState, actions: ChatActions) {
    MaterialTheme(colorScheme = lightColorScheme(primary = Ink, secondaryContainer = Drafted)) {
        Surface(Modifier.fillMaxSize()) {
            Column(Modifier.safeDrawingPadding().imePadding()) {
                var open by rememberSaveable { mutableStateOf(false) }
                Header(state, actions, open) { open = !open }
                if (open) SettingsPanel(state, actions)
                FiguresStrip(state.figures)
                state.check?.let { CheckPanel(it) }
                Messages(state, Modifier.weight(1f))
                state.error?.let {
                    Text(it, Modifier.padding(16.dp, 4.dp), color = MaterialTheme.colorScheme.error)
                }
                Input(state, actions)
            }
        }
    }
}

@Composable
private fun Header(state: ChatState, actions: ChatActions, open: Boolean, toggle: () -> Unit) {
    Row(Modifier.fillMaxWidth().padding(16.dp, 8.dp), verticalAlignment = Alignment.CenterVertically) {
        Column(Modifier.weight(1f)) {
            Text(state.bundle ?: "No bundle yet", style = MaterialTheme.typography.titleMedium)
            val settings = state.settings
            val sampling = if (settings.temperature == 0.0) "greedy" else "T ${settings.temperature}, seed ${settings.seed}"
            Text(
                "${settings.runner.label} · MTP ${settings.mtp.label.lowercase()} · $law",
                style = MaterialTheme.typography.bodySmall
            )
        }
        TextButton(onClick = actions::check, enabled = state.bundle != null && !state.busy) { Text("Check") }
        TextButton(onClick = toggle) { Text(if (open) "Done" else "Settings") }
    }
}

@Composable
private fun SettingsPanel(state: ChatState, actions: ChatActions) {
    val settings = state.settings
    Column(Modifier.fillMaxWidth().padding(16.dp, 0.dp), Arrangement.spacedBy(4.dp)) {
        Choice("Bundle", state.bundles, state.bundle, { it }, !state.busy, actions::open)
        Choice("Runner", Runner.entries, settings.runner, { it.label }, !state.busy) { runner ->
            // Google's loop has no auto.
            val mtp = if (runner == Runner.LITERT_LM && settings.mtp == Mtp.AUTO) Mtp.ON else settings.mtp
            actions.change(settings.copy(runner = runner, mtp = mtp))
        }
        val choices = if (settings.runner == Runner.LOOP) Mtp.entries else listOf(Mtp.OFF, Mtp.ON)
        Choice("MTP", choices, settings.mtp, { it.label }, !state.busy) { actions.change(settings.copy(mtp = it)) }
        Row(verticalAlignment = Alignment.CenterVertically) {
            Text("Temperature", Modifier.width(96.dp))
            Slider(
                value = settings.temperature.toFloat(),
                onValueChange = { actions.change(settings.copy(temperature = (it * 20).roundToInt() / 20.0)) },
                valueRange = 0f..2f,
                modifier = Modifier.weight(1f)
            )
            Text(settings.temperature.toString(), Modifier.width(48.dp).padding(start = 8.dp))
        }
        Row(verticalAlignment = Alignment.CenterVertically) {
            Text("Seed", Modifier.width(96.dp))
            OutlinedTextField(
                value = settings.seed.toString(),
                onValueChange = { text -> text.ifEmpty { "0" }.toLongOrNull()?.let { actions.change(settings.copy(seed = it)) } },
                keyboardOptions = KeyboardOptions(keyboardType = KeyboardType.Number),
                singleLine = true,
                modifier = Modifier.width(160.dp)
            )
            Spacer(Modifier.weight(1f))
            TextButton(onClick = actions::clear, enabled = !state.busy) { Text("New chat") }
        }
    }
}

@Composable
private fun <T> Choice(
    title: String,
    choices: List<T>,
    chosen: T?,
    label: (T) -> String,
    enabled: Boolean,
    choose: (T) -> Unit
) {
    Row(verticalAlignment = Alignment.CenterVertically) {
        Text(title, Modifier.width(96.dp))
        // There may be more bundles than fit beside each other.
        Row(Modifier.weight(1f).horizontalScroll(rememberScrollState()), Arrangement.spacedBy(8.dp)) {
            for (choice in choices) {
                FilterChip(choice == chosen, { choose(choice) }, { Text(label(choice)) }, enabled = enabled)
            }
        }
    }
}

@Composable
private fun FiguresStrip(figures: Figures) {
    Row(
        Modifier.fillMaxWidth().padding(16.dp, 4.dp),
        Arrangement.spacedBy(20.dp),
        Alignment.CenterVertically
    ) {
        Figure("tokens/s", figures.tokensPerS)
        Figure("accepted / round", figures.acceptedPerRound)
        Column {
            Text("${figures.rounds.lastOrNull()?.numDrafted ?: "–"}", style = MaterialTheme.typography.titleLarge)
            Text("K now", style = MaterialTheme.typography.labelSmall)
        }
        Rounds(figures.rounds, Modifier.weight(1f).height(44.dp))
    }
}

@Composable
private fun Figure(name: String, value: Double?) {
    Column {
        val shown = value?.let { ((it * 10).roundToInt() / 10.0).toString() } ?: "–"
        Text(shown, style = MaterialTheme.typography.titleLarge)
        Text(name, style = MaterialTheme.typography.labelSmall)
    }
}

/** A bar for each round: as high as K, filled as high as what was accepted. */
@Composable
private fun Rounds(rounds: List<RoundShown>, modifier: Modifier) {
    Canvas(modifier) {
        val highest = maxOf(rounds.maxOfOrNull { it.numDrafted } ?: 0, 4)
        val step = size.width / MAX_ROUNDS_SHOWN
        for ((index, round) in rounds.takeLast(MAX_ROUNDS_SHOWN).withIndex()) {
            for ((count, color) in listOf(round.numDrafted to Drafted, round.numAccepted to Kept)) {
                val height = size.height * maxOf(count, 0) / highest
                drawRect(color, Offset(index * step, size.height - height), Size(step * 0.7f, height))
            }
            if (round.numDrafted == 0) {
                drawRect(Drafted, Offset(index * step, size.height - 2), Size(step * 0.7f, 2f))
            }
        }
    }
}

@Composable
private fun CheckPanel(check: CheckShown) {
    Surface(
        Modifier.fillMaxWidth().padding(16.dp, 4.dp),
        shape = RoundedCornerShape(12.dp),
        color = MaterialTheme.colorScheme.surfaceVariant
    ) {
        Column(Modifier.padding(12.dp), Arrangement.spacedBy(4.dp)) {
            when (check) {
                is CheckShown.Running -> {
                    Text("Replaying the recorded original: ${check.numDone} of ${check.numPrompts} prompts")
                    LinearProgressIndicator({ check.numDone / maxOf(check.numPrompts, 1).toFloat() }, Modifier.fillMaxWidth())
                }
                is CheckShown.Done -> {
                    val verdict = if (check.passed) "Says what the original says" else "Differs from the original"
                    Text(verdict, fontWeight = FontWeight.Bold)
                    check.lines.forEach { Text(it, style = MaterialTheme.typography.bodySmall) }
                }
            }
        }
    }
}

@Composable
private fun Messages(state: ChatState, modifier: Modifier) {
    val list = rememberLazyListState()
    LaunchedEffect(state.messages.size, state.messages.lastOrNull()?.text?.length) {
        if (state.messages.isNotEmpty()) list.scrollToItem(state.messages.size - 1, Int.MAX_VALUE)
    }
    LazyColumn(modifier.fillMaxWidth().padding(16.dp, 0.dp), list, verticalArrangement = Arrangement.spacedBy(8.dp)) {
        items(state.messages) { Bubble(it) }
    }
}

@Composable
private fun Bubble(message: Message) {
    val colors = MaterialTheme.colorScheme
    Box(Modifier.fillMaxWidth(), if (message.fromUser) Alignment.CenterEnd else Alignment.CenterStart) {
        Text(
            message.text,
            Modifier
                .widthIn(max = 320.dp)
                .clip(RoundedCornerShape(16.dp))
                .background(if (message.fromUser) colors.primary else colors.surfaceVariant)
                .padding(14.dp, 10.dp),
            color = if (message.fromUser) colors.onPrimary else colors.onSurfaceVariant
        )
    }
}

@Composable
private fun Input(state: ChatState, actions: ChatActions) {
    var text by rememberSaveable { mutableStateOf("") }
    Row(Modifier.fillMaxWidth().padding(16.dp, 8.dp), Arrangement.spacedBy(8.dp), Alignment.CenterVertically) {
        OutlinedTextField(
            value = text,
            onValueChange = { text = it },
            placeholder = { Text("Say something") },
            maxLines = 4,
            modifier = Modifier.weight(1f)
        )
        if (state.busy) {
            Button(onClick = actions::stop) { Text("Stop") }
        } else {
            Button(
                onClick = {
                    actions.send(text)
                    text = ""
                },
                enabled = text.isNotBlank() && state.bundle != null
            ) { Text("Send") }
        }
    }
}

private const val MAX_ROUNDS_SHOWN = 40
