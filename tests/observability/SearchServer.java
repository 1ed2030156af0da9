import java.util.List;
import java.util.Map;

import org.opensearch.analysis.common.CommonAnalysisPlugin;
import org.opensearch.common.settings.Settings;
import org.opensearch.ingest.common.IngestCommonPlugin;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.painless.PainlessPlugin;
import org.opensearch.script.mustache.MustachePlugin;
import org.opensearch.transport.Netty4Plugin;

/** One OpenSearch node out of its jars: `java -cp JARS SearchServer.java FOLDER PORT`. */
class SearchServer extends Node {
    SearchServer(Settings settings) {
        super(
            InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), null, () -> "search"),
            List.of(
                Netty4Plugin.class,
                CommonAnalysisPlugin.class,
                PainlessPlugin.class,
                MustachePlugin.class,
                IngestCommonPlugin.class
            ),
            true
        );
    }

    public static void main(String[] arguments) throws Exception {
        new SearchServer(
            Settings.builder()
                .put("path.home", arguments[0])
                .put("network.host", "127.0.0.1")
                .put("http.port", arguments[1])
                .put("transport.port", "0")
                .put("discovery.type", "single-node")
                // A full disk of the test's machine is no matter of the test.
                .put("cluster.routing.allocation.disk.threshold_enabled", false)
                .build()
        ).start();
        Thread.currentThread().join();
    }
}
